"""Which system calls a step may make: docker's default seccomp profile, as an OCI `linux.seccomp` object.

Source: the profile that docker documents as its default (moby, profiles/seccomp), evaluated for docker's default
capabilities on Linux 4.8 and later: everything not named here fails with EPERM. io_uring is not named, as in
docker since version 25, and neither are the socket families AF_ALG and AF_VSOCK. (A 32-bit program still reaches
them by socketcall(2), as in docker without AppArmor: a filter cannot look where its arguments lie.) Runtimes skip
names their libseccomp does not know.
"""

from __future__ import annotations

from functools import cache
from typing import Any

Json = dict[str, Any]

_EPERM, _ENOSYS = 1, 38
_AF_ALG = 38  # the kernel's crypto: writes to the page cache of read-only files, which layers share (CVE-2026-31431)
_AF_VSOCK = 40  # reaches the host of a virtual machine past every network namespace
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # PER_LINUX{,32}, each with UNAME26; "what is it?"

_ALLOWED = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 chroot clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32
geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt
gettid gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect
open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6
pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg
recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address
setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid
setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid
setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall
socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
ugetrlimit umask uname unlink unlinkat utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid
write writev
"""

_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
_ALLOWED_ON = {
    "x86_64": ("arch_prctl", "modify_ldt"),
    "aarch64": (
        "arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2",
    ),
}  # fmt: skip

MACHINES = tuple(_ARCHITECTURES)
"""The machines (as uname(2) names them) that have a profile."""


@cache
def profile(machine: str, *, x32: bool = False) -> Json:
    """The `linux.seccomp` object (runtime-spec config-linux.md) for `machine`, one of MACHINES; do not change it.
    `x32`: the kernel of this x86_64 machine has the x32 ABI; naming it elsewhere allows nothing more and costs the
    runtime 7 ms a container. Raises KeyError for another machine."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": [*_ARCHITECTURES[machine], *(["SCMP_ARCH_X32"] if x32 else [])],
        "syscalls": [
            {"names": [*_ALLOWED.split(), *_ALLOWED_ON[machine]], "action": "SCMP_ACT_ALLOW"},
            # conditions of one rule on one argument do not add up: the families on each side, and the one between
            _allow_if("socket", "SCMP_CMP_LT", _AF_ALG),
            _allow_if("socket", "SCMP_CMP_EQ", _AF_ALG + 1),
            _allow_if("socket", "SCMP_CMP_GT", _AF_VSOCK),
            *(_allow_if("personality", "SCMP_CMP_EQ", value) for value in _PERSONALITIES),
            _allow_if("clone", "SCMP_CMP_MASKED_EQ", _NAMESPACE_FLAGS),
            # its flags lie in memory, where a filter cannot look; ENOSYS makes libc fall back to clone
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        ],
    }


def _allow_if(name: str, op: str, value: int) -> Json:
    """Allow when the first argument compares so; for MASKED_EQ `value` is the mask and the result must be 0."""
    condition = {"index": 0, "value": value, "valueTwo": 0, "op": op}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]}
