"""What training minimises: losses over pixels and over regions, and their weighted sums."""
