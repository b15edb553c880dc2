"""Episodes in numpy: checked records, returns-to-go, pools, and windows drawn from them."""
