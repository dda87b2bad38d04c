tool_version() { cat "$TOOLBOX/version"; }
tool_greet() { echo "$GREETING, $*."; }
