"""How the bundled demo model is made. Run `tools/train_demo.py`; this package holds its parts."""
