"""What protoc makes of protos/: never edited by hand, see protos/generate.py."""
