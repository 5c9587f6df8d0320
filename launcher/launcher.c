/*
 * The executable of a plugin: hands the call to the agent, or runs the plugin itself.
 *
 * A container runtime starts this under a plugin's name. If an agent listens, it gets the call: the
 * environment, stdin, stderr and the opened CNI_NETNS, the latter three as descriptors. Its answer
 * comes back over the socket and is written here, so that stdout has one writer whatever happens.
 * Without an agent, or with one that refuses, this process becomes an interpreter that runs the
 * plugin; the caller sees no difference.
 *
 * The agent says BEGUN before it reads stdin. Until then nothing has happened and the call can be
 * served here; after that a lost connection is an error (code 11), never a second run. The death of
 * this process closes the connection, and the agent takes that as a cancel.
 *
 * What to run is told by lines that `pycni install` appends to this file (see trailer below).
 * Protocol: src/pycni/agent/protocol.py.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PROTOCOL 1
#define BEGUN 'B'
#define MAX_REQUEST 65536
#define MAX_ANSWER (64u << 20)

/* The end of this file: lines of KEY=VALUE, the last one naming the plugin. */
struct trailer {
    char text[8192];
    char *python, *package, *libraries, *socket, *version, *plugin;
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
        {"\nversion=", &t->version},     {"\n# pycni plugin: ", &t->plugin},
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
 * Become the interpreter that runs the plugin; stdin has not been touched. What is read and written
 * is UTF-8, whatever the locale.
 */
static void run_here(const struct trailer *t)
{
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
             "      'mend it and run pycni install again\"\\n}', end='')\n"
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

/* Whether every directory of CNI_PATH means the same to the agent, whose working directory differs. */
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

static int connect_agent(const struct trailer *t)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (!*t->socket || strlen(t->socket) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, t->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* Only root's agent, or our own user's, is to be believed. */
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

/* Send header, plugin, environment and descriptors as one message. */
static int send_request(int agent, const struct trailer *t)
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

    int descriptors[3] = {0, 2, -1}, count = 2;
    const char *netns = getenv("CNI_NETNS");
    if (netns && *netns)
        descriptors[2] = open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptors[2] >= 0)
        count = 3;

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

    size_t sent = 0;
    while (sent < used) {
        vector.iov_base = request + sent;
        vector.iov_len = used - sent;
        ssize_t size = sendmsg(agent, &message, MSG_NOSIGNAL);
        if (size < 0 && errno == EINTR)
            continue;
        if (size < 0)
            return -1;
        sent += (size_t)size;
        message.msg_control = NULL;
        message.msg_controllen = 0;
    }
    if (descriptors[2] >= 0)
        close(descriptors[2]);
    return 0;
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

int main(int argc, char **argv)
{
    static struct trailer t;
    char begun;
    struct answer answer;
    if (read_trailer(&t))
        fail("?", 999, "is not installed: its file has no trailer",
             "plugins are put into a directory by 'pycni install DIR'");
    if (argc > 1 && strcmp(t.plugin, "dhcp") == 0)
        run_dhcp(&t, argc, argv);
    int agent = is_absolute(getenv("CNI_PATH")) ? connect_agent(&t) : -1;
    if (agent < 0)
        run_here(&t);
    if (send_request(agent, &t) || receive(agent, &begun, 1) || begun != BEGUN) {
        close(agent);
        run_here(&t);
    }
    char *output = NULL;
    if (receive(agent, &answer, sizeof answer) || answer.size > MAX_ANSWER ||
        !(output = malloc(answer.size + 1u)) || receive(agent, output, answer.size))
        fail(t.plugin, 11, "lost its agent while it was at work",
             "whether it was done is not known: try again later, DEL first if this was an ADD");
    if (write_all(1, output, answer.size))
        return 1;
    return (int)answer.code;
}
