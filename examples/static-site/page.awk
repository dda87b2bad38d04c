# Paragraphs are separated by empty lines; a line that begins with "# " is a heading.
function escape(text) { gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); return text }
function close_paragraph() { if (open) print "</p>"; open = 0 }
/^# /  { close_paragraph(); print "<h2>" escape(substr($0, 3)) "</h2>"; next }
/^$/   { close_paragraph(); next }
       { if (!open) print "<p>"; open = 1; print escape($0) }
END    { close_paragraph() }
