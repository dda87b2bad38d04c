"""FROM, ARG, the file's own syntax, and the instructions that only change the config."""

from __future__ import annotations

from tests.differential.cases.case import Case, no_buildah

FORMAT = {
    "comments-inside-continued": Case("RUN echo a > /x && \\\n# a comment\n  echo b >> /x && \\\n\n  echo c >> /x"),
    "case-of-instructions": Case("from @base\nenv a=b\ncopy one.txt /\nrun echo c > /c"),
    "indented-instructions": Case("  ENV a=b\n\tLABEL c=d\n   RUN echo x > /x"),
    "run-keeps-inner-white-space": Case("RUN echo 'a    b' \"c\td\" > /x"),
    "escape-backtick": Case("# escape=`\nFROM @base\nENV a=b\\c `\n e=f\nRUN echo one `\n two > /x"),
    "syntax-directive": Case("#  syntax = docker/dockerfile:1.2\nFROM @base\nRUN echo x > /x",
                             lacks={"buildkit": "would fetch that image"}),
    "directive-after-comment": Case("# hello\n# escape=`\nFROM @base\nENV a=b \\\n c=d"),
    "crlf": Case("FROM @base\r\nENV a=b\r\nCOPY one.txt /x\r\n"),
    "bom": Case("\N{ZERO WIDTH NO-BREAK SPACE}FROM @base\nENV a=b"),
}

EXPANSION = {
    "expand-plain-and-braced": Case("ENV a=1\nENV b=$a/x c=${a}x d=$ax e=${none}\nWORKDIR /d$a"),
    "expand-default-alternative": Case("ENV a=1 e=\nENV b=${a:-x} c=${n:-x} d=${a:+y} f=${n:+y} g=${e:-z} h=${e:+z}"),
    "expand-nested-word": Case("ENV a=1\nENV b=${n:-${a}2} c=${n:-${m:-3}}"),
    "expand-escaped": Case("ENV a=1\nENV b=\\$a c=\\${a} d='$a' e=\"$a\" f=\"\\$a\""),
    "expand-before-the-instruction": Case("ENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc"),
    "expand-in-each-instruction": Case(
        "ENV n=7 f=one.txt\nCOPY $f /copied-$n/\nADD ${f} /added-$n\nLABEL l$n=$f\nEXPOSE $n\nUSER $n:$n\n"
        "VOLUME /v$n\nWORKDIR /w$n\nSTOPSIGNAL $n"
    ),
    "expand-not-in-run-cmd-entrypoint": Case("ARG v=1\nENV n=7\nRUN echo $n $v > /x\nCMD echo $n\nENTRYPOINT [\"$n\"]"),
    "env-quotes": Case("ENV a=\"b c\" d=e\\ f g='h i' j=\"k'l\" m='n\"o'"),
    "env-old-form": Case("ENV one two three\nENV q \"a b\" c"),
    "env-again-keeps-its-place": Case("ENV a=1 b=2\nENV a=3 c=$b"),
    "env-empty-and-equals": Case("ENV a= b=x=y c=\"\""),
    "env-path-extended": Case("ENV PATH=/opt/bin:$PATH\nRUN echo $PATH > /x"),
    "label-forms": Case("LABEL a=b \"c d\"=\"e f\" g='h'\nLABEL multi=\"one\\\ntwo\"\nLABEL a=again"),
    "label-of-the-command-line": Case("LABEL a=b", args=("--label", "c=d", "--label", "a=z")),
}

FROM_ARG = {
    "from-scratch": Case("FROM scratch\nCOPY one.txt /"),
    "from-stage": Case("FROM @base AS a\nENV x=1\nRUN echo a > /a\nFROM a\nENV y=2\nRUN echo b > /b"),
    "from-argument": Case("ARG which=base\nFROM @base AS base\nENV a=1\nFROM ${which} AS x\nENV b=2"),
    "from-argument-given": Case("ARG which=none\nFROM @base AS base\nENV a=1\nFROM ${which}",
                                args=("--build-arg", "which=base")),
    "from-argument-default": Case("ARG which\nFROM @base AS base\nENV a=1\nFROM ${which:-base}"),
    "target-stage": Case("FROM @base AS one\nENV a=1\nFROM @base AS two\nENV a=2\nRUN false", args=("--target", "one")),
    "unused-stage-never-runs": no_buildah(
        "builds it", "FROM @base AS bad\nRUN false\nFROM @base\nRUN echo x > /x"),
    "stage-names-any-case": Case("FROM @base AS One\nRUN echo a > /a\nFROM @base\nCOPY --from=one /a /b"),
    "arg-default-and-given": Case("ARG a=1\nARG b=2\nARG c\nRUN echo $a $b $c > /x", args=("--build-arg", "b=3")),
    "arg-global-needs-declaration": Case("ARG g=1\nFROM @base\nRUN echo [$g] > /x\nARG g\nRUN echo [$g] > /y"),
    "arg-global-overridden-in-stage": Case("ARG g=1\nFROM @base\nARG g=2\nRUN echo $g > /x"),
    "arg-ends-with-its-stage": Case("FROM @base AS a\nARG v=1\nRUN echo $v > /v\nFROM @base\nRUN echo [$v] > /x"),
    "arg-goes-to-child-stages": Case("FROM @base AS a\nARG v=1\nFROM a\nRUN echo [$v] > /x"),
    "env-wins-over-arg": Case("ARG v=1\nENV v=2\nRUN echo $v > /x", args=("--build-arg", "v=3")),
    "env-from-arg": Case("ARG v\nENV w=${v:-d}\nRUN echo $w > /x", args=("--build-arg", "v=3")),
    "arg-of-another-arg": Case("ARG a=1\nARG b=${a}2\nENV c=$b"),
    "arg-again": Case("ARG a=1\nARG a=2\nENV c=$a"),
    "arg-quotes": Case("ARG a=\"x y\"\nENV c=$a d=\"$a\""),
    "arg-before-use-only": Case("ENV u=${user:-some}\nARG user\nENV w=$user", args=("--build-arg", "user=what")),
    "proxy-arguments-unseen": Case("RUN echo $HTTP_PROXY > /x", args=("--build-arg", "HTTP_PROXY=http://p:1")),
    "platform-arguments": Case("ARG TARGETPLATFORM\nARG TARGETOS\nARG TARGETARCH\nARG TARGETVARIANT\n"
                               "RUN echo $TARGETPLATFORM $TARGETOS $TARGETARCH [$TARGETVARIANT] > /x"),
    "build-platform-arguments": no_buildah("1.28 knows no BUILDPLATFORM here",
        "ARG BUILDPLATFORM\nARG BUILDOS\nARG BUILDARCH\nRUN echo $BUILDPLATFORM $BUILDOS $BUILDARCH > /x"),
    "from-build-platform": Case("FROM --platform=$BUILDPLATFORM @base\nENV a=b"),
    "platform-argument-undeclared": Case("RUN echo [$TARGETOS] > /x"),
}

METADATA = {
    "cmd-exec": Case('CMD ["a", "b c"]'),
    "cmd-shell": Case("CMD echo $HOME"),
    "cmd-last-wins": Case("CMD a\nCMD [\"b\"]"),
    "cmd-empty-json": Case("CMD []"),
    "cmd-not-json": Case("CMD ['a', 'b']"),
    "cmd-of-the-base-stays": Case("FROM @rich\nENV x=y"),
    "entrypoint-exec": Case('ENTRYPOINT ["a", "b"]\nCMD ["c"]'),
    "entrypoint-shell": Case("ENTRYPOINT exec top -b"),
    "entrypoint-drops-base-cmd": Case('FROM @rich\nENTRYPOINT ["new"]'),
    "entrypoint-after-own-cmd": Case('FROM @rich\nCMD ["own"]\nENTRYPOINT ["new"]'),
    "entrypoint-empty": Case("FROM @rich\nENTRYPOINT []"),
    "shell-for-run-cmd-entrypoint": Case('SHELL ["/bin/sh", "-ec"]\nRUN echo $0 $- > /x\nCMD a b\nENTRYPOINT c d'),
    "shell-again": Case('SHELL ["/bin/sh", "-ec"]\nSHELL ["/bin/sh", "-c"]\nRUN echo x > /x'),
    "expose-forms": Case("EXPOSE 80 443/tcp 53/udp\nEXPOSE 80/tcp\nEXPOSE 8000-8002 9000-9001/udp"),
    "volume-forms": Case('VOLUME /a /b\nVOLUME ["/c d", "/e"]'),
    "volume-of-what-was-made": Case("RUN mkdir /v && echo a > /v/a\nVOLUME /v"),
    "user-forms": Case("USER app\nUSER app:app\nUSER 1000:50"),
    "user-used-by-run": Case("RUN chmod 1777 /tmp\nUSER app\nRUN id > /tmp/id && echo $HOME > /tmp/home"),
    "user-number-used-by-run": Case("RUN chmod 1777 /tmp\nUSER 1234:99\nRUN id -u > /tmp/id; id -g >> /tmp/id"),
    "user-group-used-by-run": Case("RUN chmod 1777 /tmp\nUSER app:staff\nRUN id -g > /tmp/id; id -G >> /tmp/id"),
    "workdir-absolute-relative": Case("WORKDIR /a\nWORKDIR b\nWORKDIR c/../d\nRUN pwd > /x"),
    "workdir-variables": Case("ENV d=/path\nWORKDIR $d/$none\nRUN pwd > /x"),
    "workdir-of-the-base": Case("FROM @rich\nWORKDIR more\nUSER root\nRUN pwd > /x"),
    "workdir-exists": Case("WORKDIR /data\nCOPY one.txt ."),
    "workdir-after-user-is-the-users": Case("USER app\nWORKDIR /made/deep\nUSER 77\nWORKDIR /other\nUSER app:staff\nWORKDIR /third"),
    "workdir-with-space": Case('WORKDIR "/a b"\nRUN pwd > /x'),
    "stopsignal": Case("STOPSIGNAL SIGUSR1\nSTOPSIGNAL 9"),
    "healthcheck-shell": Case("HEALTHCHECK --interval=5m --timeout=3s --start-period=1m30s --retries=4 CMD curl -f x"),
    "healthcheck-exec": Case('HEALTHCHECK --interval=1.5s CMD ["a", "b"]'),
    "healthcheck-none": Case("FROM @rich\nHEALTHCHECK NONE"),
    "healthcheck-inherited": Case("FROM @rich\nLABEL a=b"),
    "maintainer": Case("MAINTAINER A B <a@example.org>"),
    "base-config-inherited": Case("FROM @rich\nLABEL a=b\nUSER root\nRUN pwd > /x && echo $BASE_VAR > /v"),
    "onbuild-kept": Case('ONBUILD RUN echo a > /a\nONBUILD COPY one.txt /\nONBUILD CMD ["x"]'),
    "onbuild-runs": Case("FROM @triggers\nRUN cat /from-trigger > /x"),
    "onbuild-of-a-stage": no_buildah("runs no triggers of stages",
                                     "FROM @base AS a\nONBUILD RUN echo a > /a\nFROM a\nRUN cat /a > /b"),
    "onbuild-not-in-grandchildren": no_buildah("runs no triggers of stages",
        "FROM @triggers AS a\nENV x=1\nFROM a\nRUN ls / > /dev/null"),
}
