"""Deliverables: tables, pictures, comparisons and pages made from decided masks."""
