/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Dumps one connection with its HTTP state on one machine and restores it on another, in the middle of a response.
 *
 *     dump_restore serve 198.18.0.80 8080 image      accepts a connection, answers half of a request, writes the rest to image
 *     dump_restore resume image                      on the other machine: goes on from there, once its packets come to it
 *
 * The client sees one response on one connection. Each request is answered with the same body, 100 000 numbered lines; the state
 * of the session is the line that comes next, and what the client has sent and was not looked at.
 *
 *     cc -Wall -Wextra dump_restore.c $(pkg-config --cflags --libs tcpmig) -o dump_restore
 */
#define _POSIX_C_SOURCE 200809L

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tcpmig.h>

#define LINES 100000u
#define LINE 9u /* "00000042\n" */
#define KIND "org.example.numbers"
#define LEASE 600000u /* Until then the file has to be on the other machine. */

/* An HTTP session: what goes along with its connection. */
struct session {
    uint32_t line;      /* That comes next; LINES if no response is under way. */
    size_t input_length;
    char input[4096];   /* Bytes that were read and not looked at. */
};

static void complain(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, tcpmig_last_error());
}

static int send_all(int fd, const void *bytes, size_t length)
{
    const char *from = (const char *)bytes;

    while (length > 0) {
        ssize_t sent = send(fd, from, length, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return -1;
        from += sent;
        length -= (size_t)sent;
    }
    return 0;
}

/* Sends lines of the body up to this one. */
static int send_lines(int fd, struct session *session, uint32_t end)
{
    char block[64 * LINE + 1];

    while (session->line < end) {
        uint32_t count = end - session->line < 64 ? end - session->line : 64;
        uint32_t i;

        for (i = 0; i < count; i++)
            snprintf(block + i * LINE, LINE + 1, "%08u\n", (unsigned)(session->line + i));
        if (send_all(fd, block, count * LINE) < 0)
            return -1;
        session->line += count;
    }
    return 0;
}

/* Takes a request; 1 if there was one, 0 if the client has closed. */
static int take_request(int fd, struct session *session)
{
    for (;;) {
        size_t at;
        ssize_t got;

        for (at = 0; at + 4 <= session->input_length; at++)
            if (memcmp(session->input + at, "\r\n\r\n", 4) == 0) {
                session->input_length -= at + 4;
                memmove(session->input, session->input + at + 4, session->input_length);
                return 1;
            }
        if (session->input_length == sizeof(session->input))
            return -1;
        got = recv(fd, session->input + session->input_length, sizeof(session->input) - session->input_length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return (int)got;
        session->input_length += (size_t)got;
    }
}

static int begin_response(int fd, struct session *session)
{
    char head[128];
    int length = snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %u\r\n\r\n",
                          LINES * LINE);

    session->line = 0;
    return send_all(fd, head, (size_t)length);
}

/* Answers requests until the client closes. */
static int serve(int fd, struct session *session)
{
    int taken;

    for (;;) {
        if (send_lines(fd, session, LINES) < 0)
            return -1;
        taken = take_request(fd, session);
        if (taken <= 0)
            return taken;
        if (begin_response(fd, session) < 0)
            return -1;
    }
}

static int write_file(const struct tcpmig_image *image, const char *path)
{
    /* Nobody else may read it, and an image that is there already is not overwritten. */
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int code;

    if (fd < 0) {
        perror(path);
        return -1;
    }
    code = tcpmig_image_write(image, fd);
    if (code != TCPMIG_OK)
        complain(path);
    if (close(fd) < 0 || code != TCPMIG_OK) {
        unlink(path);
        return -1;
    }
    return 0;
}

/* Writes the connection and its session to a file and takes it off this machine. 0 if that is so; otherwise it goes on here. */
static int dump(int fd, const struct session *session, const char *path, const struct tcpmig_locker *locker)
{
    struct tcpmig_frozen *frozen = NULL;
    struct tcpmig_image *image = NULL;
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    char payload[4 + sizeof(session->input)];
    uint32_t line = htonl(session->line);
    int done = -1;

    memcpy(payload, &line, 4);
    memcpy(payload + 4, session->input, session->input_length);
    layer.kind = KIND;
    layer.version = 1;
    layer.payload = payload;
    layer.payload_length = 4 + session->input_length;

    if (tcpmig_freeze(fd, locker, LEASE, &frozen) != TCPMIG_OK) {
        complain("freeze");
        return -1;
    }
    if (tcpmig_capture(frozen, &layer, 1, &image) != TCPMIG_OK)
        complain("capture");
    else if (write_file(image, path) == 0) {
        /* From here on it lives in the file, if the image is that of the connection still. */
        done = tcpmig_discard(&frozen);
        if (done != TCPMIG_OK) {
            complain("discard");
            unlink(path);
        }
    }
    if (frozen != NULL && tcpmig_keep(&frozen) != TCPMIG_OK)
        complain("keep");
    tcpmig_image_free(&image);
    return done == TCPMIG_OK ? 0 : -1;
}

static int run_serve(const char *address, const char *port, const char *path, const struct tcpmig_locker *locker)
{
    static struct session session;
    struct sockaddr_in here;
    struct tcpmig_probe probe = TCPMIG_PROBE_INIT;
    char flow[TCPMIG_FLOW_TEXT];
    int on = 1, fd, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    memset(&here, 0, sizeof(here));
    here.sin_family = AF_INET;
    here.sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, address, &here.sin_addr) != 1) {
        fprintf(stderr, "%s is not an address\n", address);
        return 2;
    }
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0 || listen(listener, 1) < 0) {
        perror("listen");
        return 1;
    }
    fd = accept(listener, NULL, NULL);
    close(listener);
    if (fd < 0) {
        perror("accept");
        return 1;
    }
    session.line = LINES;
    if (take_request(fd, &session) != 1 || begin_response(fd, &session) < 0 || send_lines(fd, &session, LINES / 2) < 0) {
        perror("answer");
        close(fd);
        return 1;
    }
    if (tcpmig_probe(fd, &probe) == TCPMIG_OK && tcpmig_flow_text(&probe.flow, flow) == TCPMIG_OK)
        fprintf(stderr, "%s: %u bytes to read, %u to be acknowledged\n", flow, (unsigned)probe.unread, (unsigned)probe.unacked);
    else
        complain("it cannot be moved");
    if (dump(fd, &session, path, locker) == 0)
        return 0;
    /* It goes on here. */
    on = serve(fd, &session);
    close(fd);
    return on == 0 ? 3 : 1;
}

/* The session that an image has. */
static int read_session(const struct tcpmig_image *image, struct session *session)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    uint32_t line;

    /* What nobody here knows must not be dropped: the session would be damaged. */
    if (tcpmig_image_layers(image) != 1 || tcpmig_image_layer(image, 0, &layer) != TCPMIG_OK || strcmp(layer.kind, KIND) != 0 ||
        layer.version != 1 || layer.payload_length < 4 || layer.payload_length - 4 > sizeof(session->input)) {
        fprintf(stderr, "not the image of a session of this program\n");
        return -1;
    }
    memcpy(&line, layer.payload, 4);
    session->line = ntohl(line);
    session->input_length = layer.payload_length - 4;
    memcpy(session->input, (const char *)layer.payload + 4, session->input_length);
    return 0;
}

static int run_resume(const char *path, const struct tcpmig_locker *locker)
{
    static struct session session;
    struct tcpmig_image *image = NULL;
    struct tcpmig_prepared *prepared = NULL;
    struct tcpmig_restored *restored = NULL;
    const void *unwritten;
    size_t length, i;
    int ended, fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        perror(path);
        return 1;
    }
    if (tcpmig_image_read(fd, &image) != TCPMIG_OK) {
        complain(path);
        close(fd);
        return 1;
    }
    close(fd);
    if (read_session(image, &session) < 0) {
        tcpmig_image_free(&image);
        return 1;
    }
    if (tcpmig_prepare(image, locker, LEASE, TCPMIG_LENIENT, &prepared) != TCPMIG_OK) {
        complain("prepare");
        tcpmig_image_free(&image);
        return 1;
    }
    tcpmig_image_free(&image);
    /* A packet that came before it was prepared would draw an RST, since there is no such connection here. */
    puts("prepared: let its packets come to this machine, and press Enter");
    fflush(stdout);
    while ((ended = getchar()) != '\n' && ended != EOF)
        ;
    /* From here on it lives here: the file must not be restored once more. */
    if (unlink(path) < 0 || tcpmig_activate(&prepared, &fd, &restored) != TCPMIG_OK) {
        complain("activate");
        tcpmig_prepared_free(&prepared);
        return 1;
    }
    for (i = 0; tcpmig_restored_warning(restored, i) != NULL; i++)
        fprintf(stderr, "without %s\n", tcpmig_restored_warning(restored, i));
    ended = tcpmig_restored_unwritten(restored, &unwritten, &length) == TCPMIG_OK ? send_all(fd, unwritten, length) : -1;
    tcpmig_restored_free(&restored);
    if (ended == 0)
        ended = serve(fd, &session);
    if (ended < 0)
        perror("serve");
    close(fd);
    return ended == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct tcpmig_locker *locker = NULL;
    const char *name = getenv("LOCKER");
    int status = 2;

    if (tcpmig_locker_open(name != NULL ? name : "nftables", &locker) != TCPMIG_OK) {
        complain("locker");
        return 1;
    }
    if (argc == 5 && strcmp(argv[1], "serve") == 0)
        status = run_serve(argv[2], argv[3], argv[4], locker);
    else if (argc == 3 && strcmp(argv[1], "resume") == 0)
        status = run_resume(argv[2], locker);
    else
        fprintf(stderr, "usage: dump_restore serve ADDRESS PORT IMAGE | resume IMAGE\n");
    tcpmig_locker_free(&locker);
    return status;
}
