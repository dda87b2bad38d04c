"""The names that BuildKit gives to steps and files, so that its caches and ours are one."""
