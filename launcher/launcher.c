/*
 * The executable of a plugin: hands the call to the agent, or runs the plugin itself.
 *
 * A container runtime starts this under a plugin's name. If an agent listens, it gets the call: the
 * environment and, as descriptors, what stdin said, a file for stderr, a pipe for its answer, and
 * the opened CNI_NETNS. Its answer is written here, so that stdout has one writer whatever happens.
 * Without an agent that begins at once, this process becomes an interpreter that runs the plugin;
 * the caller sees no difference.
 *
 * stdin is read to its end before the agent hears of the call, and neither stdin nor stderr is
 * passed on: an agent that is stopped would hold the caller's pipes open.
 *
 * The agent says BEGUN before it does anything. If that does not come within a few milliseconds,
 * whatever the reason, the reading side of the connection is shut down: from then on the agent
 * cannot say it, and one that cannot does nothing. What it said before is still there to be read.
 * So either the agent does the call or this process, and never both. After BEGUN a lost agent is an
 * error (code 11), never a second run. The death of this process closes the connection, and the
 * agent takes that as a cancel.
 *
 * What to run is in lines that `pycni install` appends to this file (see trailer below).
 * Protocol: src/pycni/agent/protocol.py.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROTOCOL 2
#define BEGUN 'B'
#define BURST_MS 2000   /* for it to begin while it gets on with other calls */
#define BEAT_MS 100     /* after which it is not seen to get on */
#define VERSION_MS 1000 /* for stdin of a call by hand, which stays open, to have something */
#define MAX_REQUEST 65536
#define MAX_STDIN (16u << 20) /* what is longer is refused, so one byte more is enough */
#define MAX_ANSWER (64u << 20)

/* The end of this file: lines of KEY=VALUE, the last one naming the plugin. */
struct trailer {
    char text[8192];
    char *python, *package, *libraries, *socket, *begin_ms, *version, *plugin;
};

/* Every answer of the agent: the exit code, and how much of stdout follows. */
struct answer {
    uint32_t code;
    uint32_t size;
};

extern char **environ;

static void fail(const char *plugin, int code, const char *what, const char *hint)
{
    printf("{\n    \"cniVersion\": \"1.1.0\",\n    \"code\": %d,\n"
           "    \"msg\": \"the plugin %s %s\",\n    \"details\": \"%s\"\n}",
           code, plugin, what, hint);
    fflush(stdout);
    _exit(1);
}

/* What follows the last occurrence of a key: the keys also stand in this program's own data. */
static char *value_of(const struct trailer *t, size_t size, const char *key)
{
    const char *at = t->text, *end = t->text + size;
    char *found = NULL;
    while ((at = memmem(at, (size_t)(end - at), key, strlen(key))))
        found = (char *)(at += strlen(key));
    return found;
}

static int read_trailer(struct trailer *t)
{
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    off_t end = lseek(fd, 0, SEEK_END);
    off_t start = end > (off_t)sizeof t->text - 1 ? end - (off_t)sizeof t->text + 1 : 0;
    ssize_t size = pread(fd, t->text, sizeof t->text - 1, start);
    close(fd);
    if (size <= 0)
        return -1;
    t->text[size] = 0;
    struct { const char *key; char **value; } keys[] = {
        {"\npython=", &t->python},       {"\npackage=", &t->package},
        {"\nlibraries=", &t->libraries}, {"\nsocket=", &t->socket},
        {"\nbegin_ms=", &t->begin_ms},   {"\nversion=", &t->version},
        {"\n# pycni plugin: ", &t->plugin},
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        *keys[i].value = value_of(t, (size_t)size, keys[i].key);
        if (!*keys[i].value)
            return -1;
    }
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char *newline = strchr(*keys[i].value, '\n');
        if (newline)
            *newline = 0;
    }
    return 0;
}

/*
 * Have descriptors 0 to 2 open, or what is opened next would take their place. Where stdout was
 * closed, writing to it fails as before.
 */
static void open_standard_descriptors(void)
{
    int fd;
    do
        fd = open("/dev/null", fcntl(0, F_GETFD) < 0 || fcntl(1, F_GETFD) < 0 ? O_RDONLY : O_RDWR);
    while (fd >= 0 && fd < 3);
    if (fd >= 3)
        close(fd);
}

/*
 * Become the interpreter that runs the plugin. What has been read of stdin is there once more. What
 * is read and written is UTF-8, whatever the locale.
 */
static void run_here(const struct trailer *t, int stdin_copy)
{
    if (stdin_copy >= 0 && lseek(stdin_copy, 0, SEEK_SET) == 0)
        dup2(stdin_copy, 0);
    char code[256], report[1024], *arguments[] = {
        t->python, "-IS", "-X", "utf8", "-c", code, t->package, t->libraries, report, NULL,
    };
    snprintf(code, sizeof code,
             "import sys\n"
             "sys.path += sys.argv[1:3]\n"
             "try:\n"
             "    from pycni import bundle\n"
             "    bundle.use()\n"
             "    from pycni.plugins import run\n"
             "    run('%s')\n"
             "except Exception as error:\n"
             "    exec(sys.argv[3])\n",
             t->plugin);
    /* Apart, since compiling it would take a fiftieth of the start, and few calls need it. */
    snprintf(report, sizeof report,
             "why = f'{type(error).__name__}: {error}'\n"
             "why = why.replace(chr(92), '/').replace(chr(34), chr(39)).replace(chr(10), ' ')\n"
             "print('{\\n    \"cniVersion\": \"1.1.0\",\\n    \"code\": 999,')\n"
             "print(f'    \"msg\": \"the plugin %s cannot start: {why}\",')\n"
             "print('    \"details\": \"pycni is damaged, or not for this Python; '\n"
             "      'repair it and run pycni install again\"\\n}', end='')\n"
             "sys.exit(1)\n",
             t->plugin);
    char probe[4300];
    snprintf(probe, sizeof probe, "%s/pycni/__init__.py", t->package);
    if (access(probe, R_OK) == 0)
        execv(t->python, arguments);
    fail(t->plugin, 999, "cannot start: its Python or its package is not there any more",
         "pycni was moved or removed; run 'pycni install' again for this directory");
}

/* Become `pycni dhcp ARGUMENTS`: unit files written for the reference run `dhcp daemon`. */
static void run_dhcp(const struct trailer *t, int argc, char **argv)
{
    char *code = "import sys\n"
                 "sys.path += sys.argv[1:3]\n"
                 "from pycni.cli.main import main\n"
                 "main(['dhcp', *sys.argv[3:]], prog_name='pycni')\n";
    char **arguments = calloc((size_t)argc + 6, sizeof *arguments);
    if (arguments) {
        char *first[] = {t->python, "-IS", "-c", code, t->package, t->libraries};
        memcpy(arguments, first, sizeof first);
        memcpy(arguments + 6, argv + 1, (size_t)(argc - 1) * sizeof *argv);
        execv(t->python, arguments);
    }
    fail(t->plugin, 999, "cannot start: its Python or its package is not there any more",
         "pycni was moved or removed; run 'pycni install' again for this directory");
}

/* Whether all of CNI_PATH means the same to the agent, whose working directory differs. */
static int is_absolute(const char *path)
{
    while (path && *path) {
        if (*path != '/')
            return 0;
        path = strchr(path, ':');
        path = path ? path + 1 : NULL;
    }
    return 1;
}

/* Whether there may be an agent; if not, stdin need not be read here. */
static int has_socket(const struct trailer *t)
{
    return *t->socket && strlen(t->socket) < sizeof((struct sockaddr_un *)0)->sun_path &&
           access(t->socket, F_OK) == 0;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t put = write(fd, data, size);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return -1;
        data += put;
        size -= (size_t)put;
    }
    return 0;
}

/* Whether stdin has something to read, or its end, within some time. */
static int stdin_is_coming(int milliseconds)
{
    struct pollfd waiting = {.fd = 0, .events = POLLIN};
    return !isatty(0) && poll(&waiting, 1, milliseconds) != 0;
}

/*
 * stdin to its end, in a file in memory; -1 with stdin as it was, if that cannot be had. Without a
 * command nothing is read, and of one that asks for the version no more than comes at once.
 */
static int read_stdin(void)
{
    static char chunk[65536];
    const char *command = getenv("CNI_COMMAND");
    int is_version = command && strcmp(command, "VERSION") == 0;
    int copy = memfd_create("stdin", MFD_CLOEXEC);
    if (copy < 0 || !command || !*command)
        return copy;
    size_t total = 0;
    while (total <= MAX_STDIN) {
        if (is_version && !stdin_is_coming(VERSION_MS))
            break;
        ssize_t got = read(0, chunk, sizeof chunk);
        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0)
            break;
        /* What fails at its beginning fails again, and the plugin has the words for it. */
        if (got < 0 || write_all(copy, chunk, (size_t)got)) {
            close(copy);
            return -1;
        }
        total += (size_t)got;
    }
    return copy;
}

/* A connection to the agent that never waits. */
static int connect_agent(const struct trailer *t)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t size = sizeof peer;
    strcpy(address.sun_path, t->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    /* Only root's agent, or our own user's, is trusted. */
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
        (peer.uid == 0 || peer.uid == geteuid()))
        return fd;
    close(fd);
    return -1;
}

/* Append a NUL-terminated string to the request; -1 if it does not fit. */
static int append(char *request, size_t *used, const char *text)
{
    size_t size = strlen(text) + 1;
    if (size > MAX_REQUEST - *used)
        return -1;
    memcpy(request + *used, text, size);
    *used += size;
    return 0;
}

/* Send header, plugin, environment and descriptors as one message, or nothing of it. */
static int send_request(int agent, const struct trailer *t, int input, int said, int reply)
{
    static char request[MAX_REQUEST];
    size_t used = 8;
    if (append(request, &used, t->version) || append(request, &used, t->plugin))
        return -1;
    for (char **entry = environ; *entry; entry++)
        if (append(request, &used, *entry))
            return -1;
    uint32_t header[2] = {PROTOCOL, (uint32_t)(used - 8)};
    memcpy(request, header, sizeof header);

    int descriptors[4] = {input, said, reply, -1}, count = 3;
    const char *netns = getenv("CNI_NETNS");
    if (netns && *netns)
        descriptors[3] = open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptors[3] >= 0)
        count = 4;

    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof descriptors)];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec vector = {request, used};
    struct msghdr message = {
        .msg_iov = &vector,
        .msg_iovlen = 1,
        .msg_control = control.room,
        .msg_controllen = CMSG_SPACE((size_t)count * sizeof(int)),
    };
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(rights), descriptors, (size_t)count * sizeof(int));

    ssize_t sent = sendmsg(agent, &message, MSG_NOSIGNAL);
    if (descriptors[3] >= 0)
        close(descriptors[3]);
    return sent == (ssize_t)used ? 0 : -1;
}

/* Whether the agent has taken or finished a call lately: src/pycni/agent/heartbeat.py. */
static int is_busy(const struct trailer *t)
{
    char path[128];
    int64_t beat = 0;
    struct timespec now;
    snprintf(path, sizeof path, "%s.alive", t->socket);
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, &beat, sizeof beat);
    close(fd);
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t age_ms = (now.tv_sec * 1000000000LL + now.tv_nsec - beat) / 1000000;
    return got == sizeof beat && age_ms >= 0 && age_ms < BEAT_MS;
}

/* Whether the agent begins; if not, it never will. */
static int begins(const struct trailer *t, int agent)
{
    struct pollfd waiting = {.fd = agent, .events = POLLIN};
    int timeout = atoi(t->begin_ms), left = BURST_MS;
    char byte;
    while (poll(&waiting, 1, timeout) == 0 && (left -= timeout) > 0 && is_busy(t))
        continue;
    ssize_t got = recv(agent, &byte, 1, 0);
    if (got < 0) {
        shutdown(agent, SHUT_RD);
        got = recv(agent, &byte, 1, 0);
    }
    return got == 1 && byte == BEGUN;
}

static int receive(int fd, void *buffer, size_t size)
{
    char *at = buffer;
    while (size) {
        ssize_t got = read(fd, at, size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        at += got;
        size -= (size_t)got;
    }
    return 0;
}

/* Pass on what the agent wrote for stderr. */
static void pass_on_stderr(int said)
{
    static char chunk[65536];
    ssize_t got;
    off_t at = 0;
    while ((got = pread(said, chunk, sizeof chunk, at)) > 0 && !write_all(2, chunk, (size_t)got))
        at += got;
}

/* Undo an ADD whose result could not be written: the caller does not know of it. */
static void take_back(const struct trailer *t, int input)
{
    const char *command = getenv("CNI_COMMAND");
    if (!command || strcmp(command, "ADD") != 0 || setenv("CNI_COMMAND", "DEL", 1))
        return;
    pid_t child = fork();
    if (child == 0) {
        int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
        dup2(nowhere, 1);
        run_here(t, input);
    }
    while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Have the agent do the call, and end with its answer; or return if it does not begin. */
static void ask_agent(const struct trailer *t, int input)
{
    struct answer answer;
    int reply[2];
    int said = memfd_create("stderr", MFD_CLOEXEC);
    if (said < 0 || pipe2(reply, O_CLOEXEC))
        return;
    int agent = connect_agent(t);
    if (agent < 0)
        return;
    int sent = send_request(agent, t, input, said, reply[1]);
    close(reply[1]);
    if (sent || !begins(t, agent)) {
        close(agent);
        close(reply[0]);
        close(said);
        return;
    }
    char *output = NULL;
    if (receive(reply[0], &answer, sizeof answer) || answer.size > MAX_ANSWER ||
        !(output = malloc(answer.size + 1u)) || receive(reply[0], output, answer.size))
        fail(t->plugin, 11, "lost its agent while it was at work",
             "whether it was done is not known: try again later, DEL first if this was an ADD");
    pass_on_stderr(said);
    if (write_all(1, output, answer.size) == 0)
        _exit((int)answer.code);
    if (answer.code == 0)
        take_back(t, input);
    _exit(1);
}

int main(int argc, char **argv)
{
    static struct trailer t;
    open_standard_descriptors();
    signal(SIGPIPE, SIG_IGN); /* as the interpreter does: a caller that is gone is an exit code */
    if (read_trailer(&t))
        fail("?", 999, "is not installed: its file has no trailer",
             "plugins are put into a directory by 'pycni install DIR'");
    if (argc > 1 && strcmp(t.plugin, "dhcp") == 0)
        run_dhcp(&t, argc, argv);
    int input = -1;
    if (has_socket(&t) && is_absolute(getenv("CNI_PATH")) && (input = read_stdin()) >= 0)
        ask_agent(&t, input);
    run_here(&t, input);
}
