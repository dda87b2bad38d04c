#!/bin/sh
# build.sh PAGES OUT: each .txt becomes a page, and index.html lists them.
set -eu
pages=$1 out=$2
mkdir -p "$out"

page() { # TITLE BODY
    awk -v title="$1" -v body="$2" '
        /@BODY@/ { while ((getline line < body) > 0) print line; next }
        { gsub(/@TITLE@/, title); print }' layout.html
}

for file in "$pages"/*.txt; do
    name=$(basename "$file" .txt)
    title=$(head -n 1 "$file")
    tail -n +2 "$file" | awk -f page.awk >"$out/$name.body"
    page "$title" "$out/$name.body" >"$out/$name.html"
    rm "$out/$name.body"
    echo "<li><a href=\"$name.html\">$title</a></li>"
done >"$out/index.body"
page "Everything here" "$out/index.body" >"$out/index.html"
rm "$out/index.body"
