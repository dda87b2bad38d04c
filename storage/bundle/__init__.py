"""The file format of a bundle: one build, in a tar, compressed with zstd.

    index.json                what is in it (below); everything else is named, sized and hashed here
    events.jsonl              the build's slice of a log, each line as `refledger events --json` prints it, keys of
                              `data` in the order that the log has: its leaves can be made of them (logtree/leaves.py)
    blobs/sha256/<hex>        blobs, small ones first

Nothing in a bundle says when or where it was made, so the same build gives the same bytes. Whoever reads one trusts
nothing of it: every size is bounded before it is read, every member checked against the index, the index against the
checksum of its frame. Index, events, small blobs and each larger one are frames of their own: damage in one leaves all
before it readable. A skippable frame (RFC 8878, 3.1.2) ends the file: the digest of all bytes before it, as not every
flipped bit of compressed data changes what it expands to.
"""
