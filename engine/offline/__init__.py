"""Building from what is here (`--offline`): nobody is asked, and what is missing is told, all of it, at once."""
