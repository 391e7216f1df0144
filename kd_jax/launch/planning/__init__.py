"""What a program needs and what bounds it: counted from shapes and from what the compiler says."""
