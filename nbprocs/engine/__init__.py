"""The operating system and the event loop. Nothing above this package touches ``subprocess``, signals or file descriptors."""
