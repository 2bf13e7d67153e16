import os

# delta-rs logs warnings of its AWS client with whole responses. It reads this when it is imported; what matters of a
# failure is in the exception. Set RUST_LOG to see more.
os.environ.setdefault("RUST_LOG", "error,aws_config=off")
