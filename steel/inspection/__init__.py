"""Running an exported inspector over images, and the tables, pictures and report that it writes."""
