"""RUN, COPY, ADD and .dockerignore."""

from __future__ import annotations

from tests.differential.cases.case import Case, archive_of_a_root, archive_with_xattrs, no_buildah

CHROOT = "no mknod in its chroot isolation"
CAPABILITY = "\x01\x00\x00\x02\x00\x04" + "\x00" * 14
"""cap_net_bind_service=ep, as the kernel keeps it."""
MOUNT = "other keys and options in 1.28"
EVERYTHING = """\
FROM @base AS build
ARG VERSION=1.2
WORKDIR /src
COPY tree .
RUN echo "built ${VERSION} of $(cat a.txt)" > out && chmod 4755 out && ln out same && ln -s out soft
FROM @base
ARG VERSION=3
ENV NAME="a b" OTHER=${VERSION:-none} PATH=/opt/bin:${PATH}
LABEL org.example.version=${VERSION} "with space"="x y"
WORKDIR /opt/app
WORKDIR data
COPY --chown=1000:50 one.txt ./
COPY --from=build /src/out /src/same /opt/bin/
COPY tree/sub/ /opt/tree/
ADD root.tar /opt/unpacked/
RUN rm /data/1 && mkdir -p /var/lib/x && echo text > /var/lib/x/file && chown 7:8 /var/lib/x/file \\
    && chmod 1777 /var/lib/x && ln -s ../lib /var/lib/link && touch -d @1000000000 /var/lib/x/old
USER app
EXPOSE 80 53/udp
VOLUME /data /var/lib
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --retries=2 CMD true
SHELL ["/bin/sh", "-ec"]
CMD echo default
ENTRYPOINT ["/opt/bin/out", "--flag"]
"""

RUN = {
    "run-shell": Case("RUN echo a > /a; echo b > /b"),
    "run-exec": Case('RUN ["/bin/sh", "-c", "echo $0 > /x", "zero"]'),
    "run-exec-no-shell": Case('RUN ["touch", "/$HOME"]'),
    "run-not-json-is-shell": Case("RUN [ -d /data ] && echo yes > /x"),
    "run-environment": Case("ENV a=1 z=\"2 3\"\nARG b=4\nRUN env | busybox grep -v -e ^HOSTNAME -e ^SHLVL -e ^_= | busybox sort > /x"),
    "run-removes": Case("RUN rm /data/1 && rm -r /lib/x"),
    "run-replaces-directory": Case("RUN rm -r /lib && mkdir /lib && echo n > /lib/new"),
    "run-directory-to-file": Case("RUN rm -r /lib && echo f > /lib"),
    "run-file-to-directory": Case("RUN rm /data/1 && mkdir /data/1 && touch /data/1/x"),
    "run-replaces-then-again": Case("RUN rm -r /lib\nRUN mkdir /lib && echo again > /lib/again"),
    "run-removes-what-a-step-made": Case("RUN mkdir /n && touch /n/a /n/b\nRUN rm /n/a\nRUN rm -r /n && touch /m"),
    "run-links": Case("RUN echo x > /f && ln /f /h && ln -s f /s && ln -s /nowhere /dangling"),
    "run-hard-link-over-layers": Case("RUN echo x > /f\nRUN ln /f /h"),
    "run-modes": Case("RUN touch /a /b /c && chmod 4755 /a && chmod 2711 /b && chmod 0 /c && mkdir /d && chmod 1777 /d"),
    "run-owners": Case("RUN touch /a && mkdir /d && chown 12:34 /a /d && chown app /data/1 && ln -s x /l && busybox chown -h 9:9 /l"),
    "run-mode-only-change": Case("RUN chmod 600 /data/1 && chmod 700 /lib"),
    "run-times": Case("RUN touch -d @1000000000 /old && mkdir /d && touch -d @1100000000 /d /data/1"),
    "run-special-files": no_buildah(CHROOT, "RUN busybox mkfifo /p && busybox mknod /c c 1 3 && busybox mknod /b b 7 200"),
    "run-odd-names": Case("RUN touch '/a b' '/ü' '/-n' '/x\\y' && mkdir '/ d ' && touch '/ d /*'"),
    "run-long-names": Case("RUN d=/$(busybox printf '%0120d' 1) && mkdir -p $d/$d && touch $d/$d/x && ln -s $d/$d/x /l"),
    "run-sparse-and-big": Case("RUN busybox truncate -s 3M /sparse && busybox dd if=/dev/zero of=/full bs=1k count=2000"),
    "run-nothing": Case("RUN true\nRUN :"),
    "run-touches-same-content": Case("RUN busybox cat /data/1 > /t && cat /t > /data/1 && rm /t"),
    "run-in-tmp-and-dev": Case("RUN echo x > /tmp/x && echo y > /dev/shm/y"),
    "run-without-mount-points": Case("FROM @bare\nRUN echo x > /x"),
    "run-renames": Case("RUN mv /data/1 /data/one && mv /lib /library"),
    "run-umask": Case("RUN umask 077 && touch /a && mkdir /b"),
    "run-capital-word-file": Case("COPY exec.sh /x\nRUN ls -l /x | busybox cut -c1-10 > /mode"),
    "mount-bind-context": Case("RUN --mount=type=bind,target=/m cat /m/one.txt /m/tree/a.txt > /x"),
    "mount-bind-source": Case("RUN --mount=type=bind,source=tree,target=/m,ro ls /m > /x"),
    "mount-bind-file": no_buildah(MOUNT, "RUN --mount=source=one.txt,target=/in/f cat /in/f > /x && ls /in > /y"),
    "mount-bind-stage": Case("FROM @base AS a\nRUN echo hi > /made\nFROM @base\nRUN --mount=type=bind,from=a,source=/made,target=/m cat /m > /x"),
    "mount-bind-rw-dropped": no_buildah(MOUNT, "RUN --mount=type=bind,rw,target=/m echo n > /m/new && ls /m > /x\n"
                                               "RUN --mount=type=bind,target=/m ls /m > /y"),
    "mount-bind-relative-target": no_buildah(MOUNT, "WORKDIR /w\nRUN --mount=type=bind,source=tree,target=t cat t/a.txt > /x"),
    "mount-tmpfs": Case("RUN --mount=type=tmpfs,target=/t touch /t/a && ls /t > /x"),
    "mount-tmpfs-over-files": Case("RUN --mount=type=tmpfs,target=/lib ls /lib > /x; touch /lib/n"),
    "mount-cache": Case("RUN --mount=type=cache,target=/cache1 echo a > /cache1/f\nRUN --mount=type=cache,target=/cache1 cat /cache1/f > /x"),
    "mount-cache-id": no_buildah(MOUNT, "RUN --mount=type=cache,id=c2,target=/c echo a > /c/f\n"
                                        "RUN --mount=type=cache,id=c2,target=/d cat /d/f > /x"),
    "mount-cache-mode-owner": no_buildah(MOUNT, "RUN --mount=type=cache,target=/c3,mode=0770,uid=5,gid=6 stat -c '%a %u %g' /c3 > /x"),
    "mount-cache-from": no_buildah(MOUNT, "FROM @base AS a\nRUN mkdir /s && echo s > /s/f\nFROM @base\n"
                                          "RUN --mount=type=cache,target=/c4,from=a,source=/s cat /c4/f > /x"),
    "mount-several": Case("RUN --mount=type=tmpfs,target=/t --mount=type=bind,source=tree,target=/b cat /b/a.txt > /t/x && cat /t/x > /x"),
    "mount-secret-missing": no_buildah(MOUNT, "RUN --mount=type=secret,id=nope ls /run/secrets > /x 2>/dev/null || echo none > /x"),
    "mount-point-leftovers": no_buildah(MOUNT, "RUN --mount=type=tmpfs,target=/deep/er/t touch /deep/er/t/x"),
}

COPY = {
    "copy-file-to-name": Case("COPY one.txt /new.txt"),
    "copy-file-to-directory": Case("COPY one.txt /dir/"),
    "copy-file-deep": Case("COPY one.txt /a/b/c/name"),
    "copy-over-file": Case("COPY one.txt /data/1"),
    "copy-into-existing-directory": Case("COPY one.txt /data"),
    "copy-several": Case("COPY one.txt two.txt exec.sh /many/"),
    "copy-json": Case('COPY ["[odd] name.txt", "one.txt", "/j s/"]' ),
    "copy-directory-contents": Case("COPY tree /t"),
    "copy-directory-slash": Case("COPY tree/ /t/"),
    "copy-directory-dot": Case("COPY tree/. /t"),
    "copy-two-directories": Case("COPY tree sibling /t/"),
    "copy-onto-existing-directory": Case("COPY tree /lib"),
    "copy-whole-context": Case("COPY . /all/"),
    "copy-directory-into-its-like": Case("RUN mkdir -p /e/sub && chmod 711 /e/sub\nCOPY over /e", files={"over/sub/new": "n"}),
    "copy-directory-to-a-dangling-link": Case("RUN ln -s /gone/x /d\nCOPY tree /d"),
    "copy-empty-directory": Case("COPY empty /made"),
    "copy-relative-to-workdir": Case("WORKDIR /w\nCOPY one.txt .\nCOPY one.txt sub/\nCOPY one.txt ../up"),
    "copy-wildcards": Case("COPY *.txt /g/\nCOPY tr?e/[a-b]* /h/\nCOPY t*/sub /i/", files={"[odd] name.txt": None}),
    "copy-wildcard-one": Case("COPY o*.txt /g"),
    "copy-wildcard-nothing": Case("COPY none* /g/"),
    "copy-wildcard-partly-nothing": Case("COPY none* one.txt /g/"),
    "copy-wildcard-escaped": Case("COPY [[]odd]* /g/"),
    "copy-leaving-the-context-is-kept-in": Case("COPY ../one.txt /x\nCOPY /two.txt /y"),
    "copy-symlink-source": Case("COPY link /l\nCOPY linkdir /ld\nCOPY linkdir/a.txt /through/\nCOPY link* /g/"),
    "copy-symlink-out-of-its-directory": Case("COPY tree/link /l/"),
    "copy-to-symlinked-directory": Case("RUN ln -s data /d\nCOPY one.txt /d/\nCOPY one.txt /d/below/x"),
    "copy-to-a-link": Case("RUN ln -s data/1 /f && ln -s /gone/x /d\nCOPY one.txt /f\nCOPY one.txt /d"),
    "copy-special-bits": Case("COPY setuid exec.sh world /b/"),
    "copy-context-owner-is-root": Case("COPY owned /o"),
    "copy-hard-links-of-the-context": Case("COPY tree/a.txt tree/hard /h/"),
    "copy-chown-numbers": Case("COPY --chown=12:34 tree /t\nCOPY --chown=7 one.txt /o/deep/"),
    "copy-chown-names": Case("COPY --chown=app:staff one.txt /n/\nCOPY --chown=app two.txt /n/"),
    "copy-chown-name-of-another-group": Case("RUN echo mail:x:8:12::/:/bin/sh >> /etc/passwd\nCOPY --chown=mail one.txt /m"),
    "copy-chown-over-existing": Case("COPY --chown=app one.txt /data/1"),
    "copy-chown-variable": Case("ARG who=3:4\nCOPY --chown=$who one.txt /x"),
    "copy-chmod": Case("COPY --chmod=640 one.txt exec.sh /c/\nCOPY --chmod=4755 one.txt /s"),
    "copy-chmod-directory": Case("COPY --chmod=705 tree /c"),
    "copy-user-does-not-matter": Case("USER app\nCOPY one.txt /x"),
    "copy-from-stage": Case("FROM @base AS a\nRUN mkdir /s && echo x > /s/f && chown 5:6 /s/f && chmod 600 /s/f && ln -s f /s/l\n"
                            "FROM @base\nCOPY --from=a /s /s\nCOPY --from=a /s/f /s/l /t/"),
    "copy-from-stage-number": Case("FROM @base\nRUN echo x > /f\nFROM @base\nCOPY --from=0 /f /g"),
    "copy-from-stage-times": Case("FROM @base AS a\nRUN mkdir /s && touch -d @1000000000 /s/f /s\nFROM @base\nCOPY --from=a /s /s"),
    "copy-from-stage-hard-links": Case("FROM @base AS a\nRUN mkdir /s && echo x > /s/f && ln /s/f /s/h\nFROM @base\nCOPY --from=a /s /s"),
    "copy-from-stage-special-files": no_buildah(CHROOT, "FROM @base AS a\nRUN mkdir /s && busybox mkfifo /s/p && busybox mknod /s/c c 1 3\n"
                                          "FROM @base\nCOPY --from=a /s /s"),
    "copy-from-stage-wildcard": Case("FROM @base AS a\nRUN mkdir /s && touch /s/a1 /s/a2 /s/b\nFROM @base\nCOPY --from=a /s/a* /t/"),
    "copy-from-stage-capability": Case("FROM @base AS a\nADD cap.tar /u/\nFROM @base\nCOPY --from=a /u/f /x",
                                       files={"cap.tar": archive_with_xattrs(security_capability=CAPABILITY)}),
    "run-after-capability": Case("ADD cap.tar /u/\nRUN touch -d @1000000000 /u/f && mv /u/f /u/g",
                                 files={"cap.tar": archive_with_xattrs(security_capability=CAPABILITY)}),
    "copy-from-stage-absolute-link": Case("FROM @base AS a\nRUN mkdir /s && echo x > /s/f && ln -s /s /l\nFROM @base\nCOPY --from=a /l/f /x"),
    "copy-from-stage-chown": Case("FROM @base AS a\nRUN mkdir /s && echo x > /s/f && chown 5:6 /s/f\nFROM @base\nCOPY --from=a --chown=1:2 /s /s"),
    "copy-from-image": Case("COPY --from=@rich /data/1 /copied"),
    "copy-from-earlier-of-two": Case("FROM @base AS a\nCOPY one.txt /f\nFROM a AS b\nCOPY two.txt /f\nFROM scratch\nCOPY --from=a /f /a\nCOPY --from=b /f /b"),
    "copy-one-file-twice": Case("COPY one.txt /x\nCOPY one.txt /x"),
    "copy-same-basename": Case("COPY one.txt sibling/../one.txt /x/"),
    "copy-amid-all-else": Case(EVERYTHING, files={"root.tar": archive_of_a_root()}),
}

ADD = {
    "add-file": Case("ADD one.txt /x/"),
    "add-directory": Case("ADD tree /t\nADD one.txt tree /u/"),
    "add-tar": Case("ADD plain.tar /u"),
    "add-tar-gz": Case("ADD gz.tgz /u/"),
    "add-tar-bz2": Case("ADD bz.tar.bz2 /u/"),
    "add-tar-xz": Case("ADD xz.tar.xz /u/"),
    "add-tar-onto-existing": Case("RUN mkdir -p /u/top && echo old > /u/top/file && echo keep > /u/top/keep\nADD plain.tar /u"),
    "add-tar-and-file": Case("ADD plain.tar one.txt /u/"),
    "add-not-a-tar": Case("ADD fake.tar.gz /u/", files={"fake.tar.gz": "no archive"}),
    "add-tar-by-wildcard": Case("ADD *.tgz /u/"),
    "add-chown-chmod": Case("ADD --chown=9:9 one.txt /u/\nADD --chmod=705 tree /t"),
    "add-tar-chown": Case("ADD --chown=9:9 plain.tar /u/"),
    "add-tar-chmod": Case("ADD --chmod=777 gz.tgz /u/"),
    "add-tar-of-a-root": Case("RUN mkdir /u\nADD root.tar /u/", files={"root.tar": archive_of_a_root()}),
    "add-tar-inside-a-directory-stays": Case("ADD d /u", files={"d/x.tar": "tar"}),
    "add-tar-capability": Case("ADD cap.tar /u/", files={"cap.tar": archive_with_xattrs(security_capability=CAPABILITY)}),
    "add-tar-user-xattr": Case("ADD note.tar /u/", files={"note.tar": archive_with_xattrs(user_note="a b")}),
    "copy-tar-stays": Case("COPY plain.tar /u/"),
    "add-relative": Case("WORKDIR /w\nADD plain.tar sub\nADD one.txt ./"),
}

IGNORE = {
    name: Case("COPY . /c/", files={".dockerignore": text, "a/x.md": "1", "a/README.md": "2", "x.md": "3", "a/b/y.tmp": "4"})
    for name, text in {
        "ignore-names": "one.txt\ntree\n",
        "ignore-wildcards": "*.txt\n*/x.md\na/?\n",
        "ignore-double-star": "**/*.md\n**/deep\n",
        "ignore-exceptions": "*\n!a\na/b\n!x.md\n",
        "ignore-exception-order": "*.md\n!x.md\nx*\n",
        "ignore-comments-and-slashes": "# one.txt\n/two.txt/\n  exec.sh  \n./tree/./a.txt\n\n",
        "ignore-exception-below": "tree\n!tree/sub/deep\n",
        "ignore-itself": ".dockerignore\nDockerfile\n",
        "ignore-everything-but": "**\n!tree/a.txt\n",
    }.items()
}
IGNORE["ignore-hides-from-mounts"] = no_buildah(
    "1.28 mounts the whole context",
    "RUN --mount=type=bind,target=/m ls -A /m > /x", files={".dockerignore": "tree\n*.tar*\nDockerfile\n"},
)
