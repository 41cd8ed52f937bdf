"""A linear probe of segmentation; see README.md."""
