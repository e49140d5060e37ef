"""The RSA key of tests that need any. To generate one takes a tenth of a second, in each worker and for each file."""

from cryptography.hazmat.primitives.asymmetric import rsa

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
