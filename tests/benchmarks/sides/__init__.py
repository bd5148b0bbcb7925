"""What runs in a process of its own, ours and the rivals': time and memory of one merge at a time."""
