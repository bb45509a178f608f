/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A server whose connections the agent of its host moves. It answers each line with the number of lines that have come on that
 * connection; the number goes along.
 *
 *     counter_agent ADDRESS PORT SERVICE SOCKET      the service is one of the agent's configuration, which listens at the socket
 *
 * It ends when it was drained.
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
#define HOSTS 8
/* How long what could not leave waits before it is tried again, in milliseconds. */
#define PAUSE 1000

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

/* Whether the agent wants all connections to leave, for which hosts, and how many were said to be left. */
struct drain {
    int is_wanted;
    uint64_t id;
    size_t said;
    char hosts[HOSTS][256];
    size_t host_count;
};

/* Gives away what there is, to these hosts in turn. */
static void give(struct tcpmig_agent *agent, const char *service, const struct drain *drain)
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
        if (tcpmig_agent_give(agent, clients[i].fd, service, drain->hosts[i % drain->host_count], &session, i) == TCPMIG_OK)
            clients[i].state = GIVEN;
        else
            complain("give");
    }
}

/* The number that comes with a connection; -1 if it is of another server. */
static int lines_of(const struct tcpmig_agent *agent, const struct tcpmig_event *event, uint32_t *lines)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;

    if (event->layer_count != 1 || tcpmig_agent_layer(agent, 0, &layer) != TCPMIG_OK || strcmp(layer.kind, KIND) != 0 ||
        layer.version != 1 || layer.payload_length != sizeof(*lines))
        return -1;
    memcpy(lines, layer.payload, sizeof(*lines));
    *lines = ntohl(*lines);
    return 0;
}

/* Whether there was an event. */
static int handle(struct tcpmig_agent *agent, const char *service, struct drain *drain)
{
    struct tcpmig_event event;
    uint32_t lines;
    size_t i;

    memset(&event, 0, sizeof(event));
    event.size = sizeof(event);
    if (tcpmig_agent_next_event(agent, &event) != TCPMIG_OK)
        return 0;
    switch (event.kind) {
    case TCPMIG_EVENT_DRAIN:
        drain->is_wanted = 1;
        drain->id = event.id;
        drain->said = MOST + 1;
        /* The event is gone when the next one comes. */
        drain->host_count = event.host_count < HOSTS ? event.host_count : HOSTS;
        for (i = 0; i < drain->host_count; i++)
            snprintf(drain->hosts[i], sizeof(drain->hosts[i]), "%s", event.hosts[i]);
        give(agent, service, drain);
        break;
    case TCPMIG_EVENT_OFFER:
        /* What nobody here knows must not be taken: the session would be damaged. */
        if (lines_of(agent, &event, &lines) < 0 || count(FREE) == 0)
            tcpmig_agent_refuse(agent, event.id, "it is not a session of this server, or there are too many");
        else
            tcpmig_agent_take(agent, event.id);
        break;
    case TCPMIG_EVENT_ARRIVED:
        if (lines_of(agent, &event, &lines) < 0)
            close(event.fd);
        else if (event.unwritten_length > 0 &&
                 send(event.fd, event.unwritten, event.unwritten_length, MSG_NOSIGNAL) < (ssize_t)event.unwritten_length)
            close(event.fd);
        else
            add(event.fd, lines);
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

/* Whether nothing is left of a drain, which waits for being told. */
static int is_drained(struct tcpmig_agent *agent, struct drain *drain)
{
    if (!drain->is_wanted || count(GIVEN) > 0)
        return 0;
    if (count(OPEN) != drain->said && tcpmig_agent_drained(agent, drain->id, count(OPEN)) != TCPMIG_OK)
        complain("drained");
    drain->said = count(OPEN);
    return drain->said == 0;
}

int main(int argc, char **argv)
{
    struct tcpmig_service service = TCPMIG_SERVICE_INIT;
    struct tcpmig_agent *agent = NULL;
    struct sockaddr_in here;
    struct drain drain;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    char text[64];
    const char *address = text;

    if (argc < 5) {
        fprintf(stderr, "usage: counter_agent ADDRESS PORT SERVICE SOCKET\n");
        return 2;
    }
    memset(&drain, 0, sizeof(drain));
    memset(&here, 0, sizeof(here));
    here.sin_family = AF_INET;
    here.sin_port = htons((uint16_t)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &here.sin_addr) != 1 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0 || listen(listener, MOST) < 0) {
        perror("listen");
        return 1;
    }
    snprintf(text, sizeof(text), "%s:%s", argv[1], argv[2]);
    service.name = argv[3];
    service.addresses = &address;
    service.address_count = 1;
    service.flags = TCPMIG_SERVICE_TAKES;
    if (tcpmig_agent_connect(argv[4], &agent) != TCPMIG_OK || tcpmig_agent_register(agent, &service) != TCPMIG_OK)
        return complain(argv[4]);
    puts("ready");
    fflush(stdout);
    while (!is_drained(agent, &drain)) {
        struct pollfd polled[MOST + 2];
        /* What was kept, because the other host was busy, goes on meanwhile. */
        int is_left = drain.is_wanted && count(GIVEN) == 0, ready;
        size_t i;

        polled[0].fd = tcpmig_agent_fd(agent);
        polled[1].fd = drain.is_wanted ? -1 : listener;
        for (i = 0; i < MOST; i++)
            polled[i + 2].fd = clients[i].state == OPEN ? clients[i].fd : -1;
        for (i = 0; i < MOST + 2; i++)
            polled[i].events = POLLIN;
        ready = poll(polled, MOST + 2, is_left ? PAUSE : -1);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready < 0)
            return 1;
        if (ready == 0)
            give(agent, argv[3], &drain);
        for (i = 0; i < MOST; i++)
            if (polled[i + 2].fd >= 0 && polled[i + 2].revents != 0)
                answer(&clients[i]);
        if (polled[1].fd >= 0 && polled[1].revents != 0) {
            int fd = accept(listener, NULL, NULL);

            if (fd >= 0)
                add(fd, 0);
        }
        while (handle(agent, argv[3], &drain))
            ;
    }
    tcpmig_agent_free(&agent);
    close(listener);
    return 0;
}
