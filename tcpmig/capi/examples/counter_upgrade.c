/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A server whose next version takes its listener and its connections over. It answers each line with the number of lines that have
 * come on that connection; the number goes along.
 *
 *     counter_upgrade ADDRESS PORT SOCKET      started once more, it takes over from the one that runs
 */
#define _POSIX_C_SOURCE 200809L

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tcpmig.h>

#define KIND "org.example.counter"
#define MOST 64

enum state { FREE, OPEN, GIVEN };

static struct client {
    enum state state;
    int fd;
    uint32_t lines;
} clients[MOST];

static int complain(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, tcpmig_last_error());
    return 1;
}

static size_t count(enum state state)
{
    size_t i, found = 0;

    for (i = 0; i < MOST; i++)
        found += clients[i].state == state;
    return found;
}

static void add(int fd, uint32_t lines)
{
    size_t i;

    for (i = 0; i < MOST; i++)
        if (clients[i].state == FREE) {
            clients[i].state = OPEN;
            clients[i].fd = fd;
            clients[i].lines = lines;
            return;
        }
    close(fd);
}

static void answer(struct client *client)
{
    char bytes[512], text[16];
    ssize_t i, got = recv(client->fd, bytes, sizeof(bytes), 0);

    for (i = 0; i < got; i++)
        if (bytes[i] == '\n') {
            int length = snprintf(text, sizeof(text), "%u\n", (unsigned)++client->lines);

            if (send(client->fd, text, (size_t)length, MSG_NOSIGNAL) != length)
                got = 0;
        }
    if (got <= 0) {
        close(client->fd);
        client->state = FREE;
    }
}

/* Gives the next version what there is. */
static void give(struct tcpmig_upgrade *upgrade)
{
    size_t i;

    for (i = 0; i < MOST; i++) {
        struct tcpmig_session session = TCPMIG_SESSION_INIT;
        struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
        uint32_t lines = htonl(clients[i].lines);

        if (clients[i].state != OPEN)
            continue;
        layer.kind = KIND;
        layer.version = 1;
        layer.payload = &lines;
        layer.payload_length = sizeof(lines);
        session.layers = &layer;
        session.layer_count = 1;
        if (tcpmig_upgrade_give(upgrade, clients[i].fd, &session, i) == TCPMIG_OK)
            clients[i].state = GIVEN;
        else
            complain("give");
    }
}

/* The number that comes with a connection; -1 if it is of another server. */
static int lines_of(const struct tcpmig_upgrade *upgrade, const struct tcpmig_event *event, uint32_t *lines)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;

    if (event->layer_count != 1 || tcpmig_upgrade_layer(upgrade, 0, &layer) != TCPMIG_OK || strcmp(layer.kind, KIND) != 0 ||
        layer.version != 1 || layer.payload_length != sizeof(*lines))
        return -1;
    memcpy(lines, layer.payload, sizeof(*lines));
    *lines = ntohl(*lines);
    return 0;
}

/* Whether there was an event. */
static int handle(struct tcpmig_upgrade *upgrade, int *accepts)
{
    struct tcpmig_event event;
    uint32_t lines;

    memset(&event, 0, sizeof(event));
    event.size = sizeof(event);
    if (tcpmig_upgrade_next_event(upgrade, &event) != TCPMIG_OK)
        return 0;
    switch (event.kind) {
    case TCPMIG_EVENT_OFFER:
        /* What nobody here knows must not be taken: the session would be damaged. */
        if (lines_of(upgrade, &event, &lines) < 0 || count(FREE) == 0)
            tcpmig_upgrade_refuse(upgrade, event.id, "it is not a session of this server, or there are too many");
        else
            tcpmig_upgrade_take(upgrade, event.id);
        break;
    case TCPMIG_EVENT_ARRIVED:
        if (lines_of(upgrade, &event, &lines) < 0)
            close(event.fd);
        else
            add(event.fd, lines);
        break;
    case TCPMIG_EVENT_SUCCESSOR:
        *accepts = 0;
        give(upgrade);
        break;
    case TCPMIG_EVENT_SUCCESSOR_GONE:
        *accepts = 1;
        break;
    case TCPMIG_EVENT_MOVED:
    case TCPMIG_EVENT_LOST:
        clients[event.id].state = FREE;
        break;
    case TCPMIG_EVENT_KEPT:
        clients[event.id].state = OPEN;
        clients[event.id].fd = event.fd;
        break;
    }
    return event.kind != TCPMIG_EVENT_NONE;
}

static int begin_listening(const char *address, const char *port)
{
    struct sockaddr_in here;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

    memset(&here, 0, sizeof(here));
    here.sin_family = AF_INET;
    here.sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, address, &here.sin_addr) != 1 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0 || listen(listener, MOST) < 0) {
        perror("listen");
        return -1;
    }
    return listener;
}

int main(int argc, char **argv)
{
    struct tcpmig_upgrade *upgrade = NULL;
    int accepts = 1, had_older, listener = -1;

    if (argc < 4) {
        fprintf(stderr, "usage: counter_upgrade ADDRESS PORT SOCKET\n");
        return 2;
    }
    if (tcpmig_upgrade_begin(argv[3], &upgrade, &had_older) != TCPMIG_OK)
        return complain(argv[3]);
    if (!had_older)
        listener = begin_listening(argv[1], argv[2]);
    else if (tcpmig_upgrade_listener(upgrade, "counter", &listener) != TCPMIG_OK)
        return complain("listener");
    if (listener < 0)
        return 1;
    if (tcpmig_upgrade_pass(upgrade, "counter", listener) != TCPMIG_OK || tcpmig_upgrade_ready(upgrade) != TCPMIG_OK)
        return complain("ready");
    puts("ready");
    fflush(stdout);
    /* Until the next version accepts and has all that there is. */
    while (accepts || count(OPEN) > 0 || count(GIVEN) > 0) {
        struct pollfd polled[MOST + 2];
        size_t i;

        polled[0].fd = tcpmig_upgrade_fd(upgrade);
        polled[1].fd = accepts ? listener : -1;
        for (i = 0; i < MOST; i++)
            polled[i + 2].fd = clients[i].state == OPEN ? clients[i].fd : -1;
        for (i = 0; i < MOST + 2; i++)
            polled[i].events = POLLIN;
        if (poll(polled, MOST + 2, -1) < 0 && errno != EINTR)
            return 1;
        for (i = 0; i < MOST; i++)
            if (polled[i + 2].fd >= 0 && polled[i + 2].revents != 0)
                answer(&clients[i]);
        if (polled[1].fd >= 0 && polled[1].revents != 0) {
            int fd = accept(listener, NULL, NULL);

            if (fd >= 0)
                add(fd, 0);
        }
        while (handle(upgrade, &accepts))
            ;
    }
    if (tcpmig_upgrade_finish(upgrade) != TCPMIG_OK)
        complain("finish");
    tcpmig_upgrade_free(&upgrade);
    close(listener);
    return 0;
}
