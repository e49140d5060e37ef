"""What is known of each third party, and how to speak OAuth 2 and HTTP to it.

Each provider's module says where its facts come from, and how sure they are: [H] the provider's own
documentation or software was seen; [M] secondary sources; [K] general knowledge, to be checked first when
something does not work.
"""
