"""The demo: a page that shows the dyno's processes and cooks jobs. Replace it by your own apps."""
