/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * An HTTP server whose connections move to other hosts through the agent, and to its own next version on this host, in the middle of
 * responses and requests.
 *
 *     http_server 198.18.0.80 8080 web /run/tcpmig/agent.sock /run/user/1000/http_server.sock
 *
 * It is one event loop without threads (epoll), needs no privileges, and ends when it was drained or when the next version has taken
 * over: start it once more with the same path. "-" stands for no agent, and for no next version. GET /numbers answers with 100 000
 * numbered lines, everything else with the number of the request on its connection.
 *
 *     cc -Wall -Wextra http_server.c $(pkg-config --cflags --libs tcpmig) -o http_server
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tcpmig.h>

#define LINES 100000u
#define LINE 9u /* "00000042\n" */
#define KIND "org.example.http"
#define MOST_INPUT 8192u
#define MOST_OUTPUT 65536u

struct buffer {
    char *bytes;
    size_t length, capacity;
};

/* A connection with its HTTP session: the two numbers and the two buffers are all that there is to it. */
struct connection {
    struct connection *next, *previous;
    int fd; /* -1 while the library has it. */
    struct tcpmig_flow flow;
    uint32_t served; /* Requests. */
    uint32_t line;   /* Of /numbers that comes next; LINES if none is under way. */
    struct buffer input;
    struct buffer output;
};

static const char *service;
static struct tcpmig_agent *agent;
static struct tcpmig_upgrade *upgrade;
static int epoll = -1, listener = -1;
static int has_older, has_next; /* Versions of this server. */
static struct connection connections; /* The head of the ring. */
static size_t count, away;
static uint64_t drain;
static char **drain_hosts;
static size_t drain_host_count, drain_next;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void complain(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, tcpmig_last_error());
}

/* ---- Buffers */

static void append(struct buffer *buffer, const void *bytes, size_t length)
{
    if (length > buffer->capacity - buffer->length) {
        buffer->capacity = 2 * (buffer->length + length);
        buffer->bytes = (char *)realloc(buffer->bytes, buffer->capacity);
        if (buffer->bytes == NULL)
            fail("realloc");
    }
    if (length > 0)
        memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
}

static void consume(struct buffer *buffer, size_t length)
{
    buffer->length -= length;
    memmove(buffer->bytes, buffer->bytes + length, buffer->length);
}

/* ---- Connections */

static struct connection *add(int fd)
{
    struct connection *it = (struct connection *)calloc(1, sizeof(*it));

    if (it == NULL)
        fail("calloc");
    it->fd = fd;
    it->line = LINES;
    it->next = &connections;
    it->previous = connections.previous;
    it->previous->next = it;
    connections.previous = it;
    count++;
    return it;
}

static void forget(struct connection *it)
{
    it->previous->next = it->next;
    it->next->previous = it->previous;
    if (it->fd >= 0)
        close(it->fd);
    free(it->input.bytes);
    free(it->output.bytes);
    free(it);
    count--;
}

static void watch(struct connection *it, int operation)
{
    struct epoll_event event;

    memset(&event, 0, sizeof(event));
    event.data.ptr = it;
    /* While there is something to write nothing is read, so that buffers have an end. */
    event.events = it->output.length > 0 ? EPOLLOUT : EPOLLIN;
    if (epoll_ctl(epoll, operation, it->fd, &event) < 0)
        fail("epoll_ctl");
}

/* ---- HTTP */

static void more_lines(struct connection *it)
{
    char line[LINE + 1];

    while (it->line < LINES && it->output.length < MOST_OUTPUT) {
        snprintf(line, sizeof(line), "%08u\n", (unsigned)it->line % 100000000u);
        append(&it->output, line, LINE);
        it->line++;
    }
}

/* Answers the next request, if all of it is there. */
static int answer(struct connection *it)
{
    char *end = (char *)memmem(it->input.bytes, it->input.length, "\r\n\r\n", 4);
    char head[256], body[64];
    int length, is_numbers;

    if (end == NULL)
        return 0;
    is_numbers = it->input.length > 13 && memcmp(it->input.bytes, "GET /numbers ", 13) == 0;
    consume(&it->input, (size_t)(end - it->input.bytes) + 4);
    it->served++;
    if (is_numbers) {
        length = snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Length: %u\r\n\r\n", LINES * LINE);
        it->line = 0;
    } else {
        int of_body = snprintf(body, sizeof(body), "request %u of this connection\n", (unsigned)it->served);

        length = snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", of_body, body);
    }
    append(&it->output, head, (size_t)length);
    return 1;
}

/* Does what can be done without waiting; -1 if the connection is over. */
static int go_on(struct connection *it)
{
    for (;;) {
        ssize_t done;
        char bytes[4096];

        more_lines(it);
        if (it->output.length > 0) {
            done = send(it->fd, it->output.bytes, it->output.length, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (done > 0)
                consume(&it->output, (size_t)done);
        } else if (it->input.length > 0 && answer(it)) {
            continue;
        } else {
            if (it->input.length >= MOST_INPUT)
                return -1;
            done = recv(it->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
            if (done == 0)
                return -1;
            if (done > 0)
                append(&it->input, bytes, (size_t)done);
        }
        if (done < 0 && errno != EINTR)
            return errno == EAGAIN ? 0 : -1;
    }
}

static void watch_other(int fd, void *what, int operation)
{
    struct epoll_event event;

    memset(&event, 0, sizeof(event));
    event.events = EPOLLIN;
    event.data.ptr = what;
    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        fail("epoll_ctl");
}

static void serve(struct connection *it, int operation)
{
    if (go_on(it) < 0)
        forget(it);
    else
        watch(it, operation);
}

static void accept_all(void)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *it = add(fd);

        if (tcpmig_flow_of(fd, &it->flow) != TCPMIG_OK)
            forget(it);
        else
            serve(it, EPOLL_CTL_ADD);
    }
}

/* ---- Where connections go, and where they come from */

/* Gives a connection away, as it is: nothing has to be finished before. To a host through the agent, or to the next version. */
static void give(struct connection *it, const char *host)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    struct tcpmig_session session = TCPMIG_SESSION_INIT;
    struct iovec input, output;
    uint32_t state[2];
    uint64_t id = (uint64_t)(uintptr_t)it;
    int code;

    state[0] = htonl(it->served);
    state[1] = htonl(it->line);
    layer.kind = KIND;
    layer.version = 1;
    layer.payload = state;
    layer.payload_length = sizeof(state);
    input.iov_base = it->input.bytes;
    input.iov_len = it->input.length;
    output.iov_base = it->output.bytes;
    output.iov_len = it->output.length;
    session.layers = &layer;
    session.layer_count = 1;
    session.unprocessed = &input;
    session.unprocessed_count = 1;
    session.unsent = &output;
    session.unsent_count = 1;
    epoll_ctl(epoll, EPOLL_CTL_DEL, it->fd, NULL);
    code = host != NULL ? tcpmig_agent_give(agent, it->fd, service, host, &session, id)
                        : tcpmig_upgrade_give(upgrade, it->fd, &session, id);
    if (code != TCPMIG_OK) {
        complain("give");
        watch(it, EPOLL_CTL_ADD);
        return;
    }
    it->fd = -1;
    away++;
}

static void give_all(void)
{
    struct connection *it;

    for (it = connections.next; it != &connections; it = it->next)
        if (it->fd >= 0)
            give(it, has_next ? NULL : drain_hosts[drain_next++ % drain_host_count]);
}

static int is_leaving(void)
{
    return drain != 0 || has_next;
}

static void begin_to_drain(const struct tcpmig_event *event)
{
    size_t i;

    for (i = 0; i < drain_host_count; i++)
        free(drain_hosts[i]);
    free(drain_hosts);
    drain = event->id;
    drain_host_count = event->host_count;
    drain_hosts = (char **)calloc(event->host_count, sizeof(*drain_hosts));
    if (drain_hosts == NULL)
        fail("calloc");
    for (i = 0; i < event->host_count; i++)
        drain_hosts[i] = strdup(event->hosts[i]);
    if (listener >= 0) {
        accept_all();
        close(listener);
        listener = -1;
    }
    give_all();
}

static int layer_of(int is_upgrade, struct tcpmig_layer *layer)
{
    return is_upgrade ? tcpmig_upgrade_layer(upgrade, 0, layer) : tcpmig_agent_layer(agent, 0, layer);
}

static void offered(const struct tcpmig_event *event, int is_upgrade)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    const char *reason = "not a session of this server";

    if (is_leaving() && !is_upgrade)
        reason = "this server ends";
    else if (event->layer_count == 1 && layer_of(is_upgrade, &layer) == TCPMIG_OK && strcmp(layer.kind, KIND) == 0 &&
             layer.version == 1 && layer.payload_length == 8)
        reason = NULL;
    if (is_upgrade && reason == NULL)
        tcpmig_upgrade_take(upgrade, event->id);
    else if (is_upgrade)
        tcpmig_upgrade_refuse(upgrade, event->id, reason);
    else if (reason == NULL)
        tcpmig_agent_take(agent, event->id);
    else
        tcpmig_agent_refuse(agent, event->id, reason);
}

static void arrived(const struct tcpmig_event *event, int is_upgrade)
{
    struct connection *it = add(event->fd);
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    uint32_t state[2];

    if (layer_of(is_upgrade, &layer) != TCPMIG_OK) {
        forget(it);
        return;
    }
    memcpy(state, layer.payload, sizeof(state));
    it->flow = event->flow;
    it->served = ntohl(state[0]);
    it->line = ntohl(state[1]);
    append(&it->output, event->unwritten, event->unwritten_length);
    append(&it->input, event->unprocessed, event->unprocessed_length);
    puts("arrived");
    serve(it, EPOLL_CTL_ADD);
}

static void take_events(int is_upgrade)
{
    struct tcpmig_event event;
    struct connection *it;

    for (;;) {
        event.size = sizeof(event);
        if ((is_upgrade ? tcpmig_upgrade_next_event(upgrade, &event) : tcpmig_agent_next_event(agent, &event)) != TCPMIG_OK) {
            complain("event");
            return;
        }
        it = (struct connection *)(uintptr_t)event.id;
        switch (event.kind) {
        case TCPMIG_EVENT_NONE:
            return;
        case TCPMIG_EVENT_DRAIN:
            begin_to_drain(&event);
            break;
        case TCPMIG_EVENT_WANTED:
            for (it = connections.next; it != &connections; it = it->next)
                if (it->fd >= 0 && memcmp(&it->flow, &event.flow, sizeof(it->flow)) == 0) {
                    give(it, event.host);
                    break;
                }
            break;
        case TCPMIG_EVENT_OFFER:
            offered(&event, is_upgrade);
            break;
        case TCPMIG_EVENT_ARRIVED:
            arrived(&event, is_upgrade);
            break;
        case TCPMIG_EVENT_MOVED:
        case TCPMIG_EVENT_LOST:
            puts(event.kind == TCPMIG_EVENT_MOVED ? "moved" : "lost");
            away--;
            forget(it);
            break;
        case TCPMIG_EVENT_KEPT:
            printf("kept: %s (%s)\n", event.reason, event.code);
            away--;
            it->fd = event.fd;
            serve(it, EPOLL_CTL_ADD);
            break;
        case TCPMIG_EVENT_SUCCESSOR:
            has_next = 1;
            epoll_ctl(epoll, EPOLL_CTL_DEL, listener, NULL);
            give_all();
            break;
        case TCPMIG_EVENT_SUCCESSOR_GONE:
            has_next = 0;
            watch_other(listener, &listener, EPOLL_CTL_ADD);
            break;
        case TCPMIG_EVENT_COMPLETE:
            has_older = 0;
            break;
        case TCPMIG_EVENT_WITHDRAWN:
        case TCPMIG_EVENT_DOUBT:
        default:
            /* One that does not come was nothing here yet; one in doubt has an answer later. */
            break;
        }
    }
}

static void listen_on(const char *address, const char *port)
{
    struct sockaddr_in here;
    int on = 1;

    memset(&here, 0, sizeof(here));
    here.sin_family = AF_INET;
    here.sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, address, &here.sin_addr) != 1) {
        fprintf(stderr, "%s is not an address\n", address);
        exit(2);
    }
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0 || listen(listener, 128) < 0)
        fail("listen");
}

/* Takes the listener of an older version over, or listens. */
static void begin(const char *path, const char *address, const char *port)
{
    if (strcmp(path, "-") == 0) {
        listen_on(address, port);
        return;
    }
    if (tcpmig_upgrade_begin(path, &upgrade, &has_older) != TCPMIG_OK) {
        complain("the older version");
        exit(1);
    }
    if (!has_older)
        listen_on(address, port);
    else if (tcpmig_upgrade_listener(upgrade, "http", &listener) != TCPMIG_OK) {
        complain("the older version");
        exit(1);
    }
    if (tcpmig_upgrade_pass(upgrade, "http", listener) != TCPMIG_OK || tcpmig_upgrade_ready(upgrade) != TCPMIG_OK) {
        complain("take over");
        exit(1);
    }
    watch_other(tcpmig_upgrade_fd(upgrade), &upgrade, EPOLL_CTL_ADD);
}

static void register_service(const char *path, const char *address, const char *port)
{
    struct tcpmig_service this_one = TCPMIG_SERVICE_INIT;
    char text[64];
    const char *addresses = text;

    snprintf(text, sizeof(text), "%s:%s", address, port);
    this_one.name = service;
    this_one.addresses = &addresses;
    this_one.address_count = 1;
    this_one.flags = TCPMIG_SERVICE_TAKES;
    if (tcpmig_agent_connect(path, &agent) != TCPMIG_OK || tcpmig_agent_register(agent, &this_one) != TCPMIG_OK) {
        complain("agent");
        exit(1);
    }
    watch_other(tcpmig_agent_fd(agent), &agent, EPOLL_CTL_ADD);
}

int main(int argc, char **argv)
{
    struct epoll_event events[64];
    int i, ready;

    if (argc != 6) {
        fprintf(stderr, "usage: http_server ADDRESS PORT SERVICE AGENT|- UPGRADE|-\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    connections.next = connections.previous = &connections;
    service = argv[3];
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        fail("epoll_create1");
    begin(argv[5], argv[1], argv[2]);
    watch_other(listener, &listener, EPOLL_CTL_ADD);
    if (strcmp(argv[4], "-") != 0)
        register_service(argv[4], argv[1], argv[2]);
    puts("ready");
    while (!is_leaving() || count > 0 || has_older) {
        /* What could not move is tried again. */
        ready = epoll_wait(epoll, events, 64, is_leaving() && away == 0 ? 100 : -1);
        if (ready < 0 && errno != EINTR)
            fail("epoll_wait");
        if (ready == 0)
            give_all();
        for (i = 0; i < ready; i++) {
            void *what = events[i].data.ptr;

            if (what == &listener)
                accept_all();
            else if (what != &agent && what != &upgrade)
                serve((struct connection *)what, EPOLL_CTL_MOD);
        }
        /* After the connections: what happens to them here may concern one that this round was about. */
        if (agent != NULL)
            take_events(0);
        if (upgrade != NULL)
            take_events(1);
        if (has_next && count == 0 && !has_older && tcpmig_upgrade_finish(upgrade) != TCPMIG_OK) {
            complain("the next version");
            has_next = 0;
            watch_other(listener, &listener, EPOLL_CTL_ADD);
        }
    }
    if (drain != 0)
        tcpmig_agent_drained(agent, drain, 0);
    puts("empty");
    tcpmig_agent_free(&agent);
    tcpmig_upgrade_free(&upgrade);
    for (i = 0; (size_t)i < drain_host_count; i++)
        free(drain_hosts[i]);
    free(drain_hosts);
    if (listener >= 0)
        close(listener);
    close(epoll);
    return 0;
}
