"""Where records come from: folders, tables and COCO files."""
