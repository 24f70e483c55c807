"""A double of a Piku host: OpenSSH's server, which runs `command.py` whatever is asked, and Debian's uWSGI."""
