"""The fault suite: everything that may go wrong is made to go wrong, with and without the protection."""
