"""The front end: HTTP in, a request to an actor or a read, HTTP out."""
