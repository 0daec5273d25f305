"""The two nets and their weights."""
