/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Connections at rest: between two requests of HTTP/1, or before the first. All that there is to such a connection beside its socket is
 * in the layer "org.tcpmig.nginx", version 1, whose numbers are big endian:
 *
 *     32 bits  the family of its socket: 4 or 6
 *     32 bits  how many requests it has had
 *     64 bits  its age in milliseconds
 *     64 bits  how many milliseconds it may still rest
 */
#include "ngx_http_tcpmig.h"

#define KIND "org.tcpmig.nginx"
#define VERSION 1u
#define LENGTH 24u

/* What comes back, or comes, may be in the middle of its last moment. */
#define SHORTEST_REST 1000u
#define FIRST_DELAY 100u
#define LONGEST_DELAY 10000u

/* A connection that was given, in the pool of that. */
typedef struct {
    ngx_connection_t *c;
    ngx_msec_t rest;
    ngx_msec_t delay; /* Between attempts, if it was kept. */
    ngx_msec_t not_before;
    unsigned idle : 1;
} gift_t;

/* One that arrived, with bytes that go before anything else. */
typedef struct {
    u_char *bytes;
    size_t length;
    ngx_msec_t rest; /* Afterwards. */
} unwritten_t;

/* Which handler nginx has for connections that have had no request; it has no name outside of nginx. */
static ngx_event_handler_pt waits_for_request;

/* ---- Which connections */

static ngx_http_addr_conf_t *among_v4(ngx_http_port_t *port, struct sockaddr *local)
{
    ngx_http_in_addr_t *addresses = port->addrs;
    ngx_uint_t i;

    /* The last one is that of all others. */
    for (i = 0; i + 1 < port->naddrs; i++)
        if (addresses[i].addr == ((struct sockaddr_in *)local)->sin_addr.s_addr)
            break;
    return &addresses[i].conf;
}

static ngx_http_addr_conf_t *among_v6(ngx_http_port_t *port, struct sockaddr *local)
{
    ngx_http_in6_addr_t *addresses = port->addrs;
    ngx_uint_t i;

    for (i = 0; i + 1 < port->naddrs; i++)
        if (memcmp(&addresses[i].addr6, &((struct sockaddr_in6 *)local)->sin6_addr, sizeof(struct in6_addr)) == 0)
            break;
    return &addresses[i].conf;
}

/* What nginx has for connections to this address, if they are of the service. */
static ngx_http_addr_conf_t *conf_of(ngx_http_tcpmig_link_t *link, ngx_listening_t *listening, struct sockaddr *local)
{
    ngx_http_tcpmig_srv_conf_t *server;
    ngx_http_addr_conf_t *conf;

    if (listening->sockaddr->sa_family != local->sa_family)
        return NULL;
    if (local->sa_family == AF_INET)
        conf = among_v4(listening->servers, local);
    else if (local->sa_family == AF_INET6)
        conf = among_v6(listening->servers, local);
    else
        return NULL;
    server = conf->default_server->ctx->srv_conf[ngx_http_tcpmig_module.ctx_index];
    if (server->service != link->service || conf->ssl || conf->http2 || conf->proxy_protocol)
        return NULL;
    return conf;
}

static void see_connection(ngx_connection_t *c)
{
    ngx_http_connection_t *http;

    ngx_http_init_connection(c);
    if (waits_for_request != NULL || c->destroyed || !c->reusable)
        return;
    http = c->data;
    if (!http->addr_conf->ssl && !http->addr_conf->http2)
        waits_for_request = c->read->handler;
}

void ngx_http_tcpmig_wrap_listening(ngx_cycle_t *cycle)
{
    ngx_listening_t *listening = cycle->listening.elts;
    ngx_uint_t i;

    for (i = 0; i < cycle->listening.nelts; i++)
        if (listening[i].handler == ngx_http_init_connection)
            listening[i].handler = see_connection;
}

static ngx_http_addr_conf_t *conf_of_connection(ngx_http_tcpmig_link_t *link, ngx_connection_t *c)
{
    if (c->fd == (ngx_socket_t)-1 || c->listening == NULL || c->listening->handler != see_connection || c->read->accept)
        return NULL;
    if (((ngx_http_port_t *)c->listening->servers)->naddrs > 1 && ngx_connection_local_sockaddr(c, NULL, 0) != NGX_OK)
        return NULL;
    return conf_of(link, c->listening, c->local_sockaddr);
}

/* nginx says of a connection whether it can be done without: it can at rest, and while it is closed or in a handshake. At rest its data is
 * an ngx_http_connection_t, which begins with the address's configuration; in all other cases it is something else. */
static ngx_int_t is_at_rest(ngx_http_tcpmig_link_t *link, ngx_connection_t *c)
{
    ngx_http_addr_conf_t *conf;

    if (!c->reusable || !c->read->active || c->close || c->ssl != NULL || c->proxy_protocol != NULL || c->buffered)
        return 0;
    if (!c->idle && (waits_for_request == NULL || c->read->handler != waits_for_request))
        return 0;
    conf = conf_of_connection(link, c);
    if (conf == NULL || *(ngx_http_addr_conf_t **)c->data != conf)
        return 0;
    return c->buffer == NULL || c->buffer->pos == NULL || c->buffer->start == NULL || c->buffer->pos == c->buffer->last;
}

void ngx_http_tcpmig_each_at_rest(ngx_http_tcpmig_link_t *link, ngx_http_tcpmig_found_pt found)
{
    ngx_queue_t *queue = &((ngx_cycle_t *)ngx_cycle)->reusable_connections_queue, *at, *next;

    for (at = ngx_queue_head(queue); at != ngx_queue_sentinel(queue); at = next) {
        ngx_connection_t *c = ngx_queue_data(at, ngx_connection_t, queue);

        /* It leaves the queue when it is given. */
        next = ngx_queue_next(at);
        if (is_at_rest(link, c) && found(link, c) != NGX_OK)
            return;
    }
}

ngx_uint_t ngx_http_tcpmig_count(ngx_http_tcpmig_link_t *link)
{
    ngx_connection_t *connections = ngx_cycle->connections;
    ngx_uint_t i, count = 0;

    for (i = 0; i < ngx_cycle->connection_n; i++)
        count += conf_of_connection(link, &connections[i]) != NULL;
    return count;
}

/* ---- Away, and back */

static void forgotten(void *data)
{
    (void)data;
}

/* What is noted of a connection that is or was given: its cleanup does nothing, but can be found. */
static gift_t *gift_of(ngx_connection_t *c)
{
    ngx_pool_cleanup_t *cleanup;

    for (cleanup = c->pool->cleanup; cleanup != NULL; cleanup = cleanup->next)
        if (cleanup->handler == forgotten)
            return cleanup->data;
    return NULL;
}

static gift_t *new_gift(ngx_connection_t *c)
{
    ngx_pool_cleanup_t *cleanup = ngx_pool_cleanup_add(c->pool, sizeof(gift_t));
    gift_t *gift;

    if (cleanup == NULL)
        return NULL;
    cleanup->handler = forgotten;
    gift = cleanup->data;
    ngx_memzero(gift, sizeof(*gift));
    gift->c = c;
    return gift;
}

ngx_int_t ngx_http_tcpmig_is_too_soon(ngx_connection_t *c)
{
    gift_t *gift = gift_of(c);

    return gift != NULL && gift->delay > 0 && (ngx_msec_int_t)(ngx_current_msec - gift->not_before) < 0;
}

static ngx_msec_t rest_of(ngx_connection_t *c)
{
    ngx_msec_int_t rest = c->read->timer_set ? (ngx_msec_int_t)(c->read->timer.key - ngx_current_msec) : 0;

    return ngx_max(rest, (ngx_msec_int_t)SHORTEST_REST);
}

static void put(u_char *at, uint64_t number, size_t bytes)
{
    while (bytes > 0) {
        at[--bytes] = (u_char)number;
        number >>= 8;
    }
}

static uint64_t got(const u_char *at, size_t bytes)
{
    uint64_t number = 0;

    while (bytes-- > 0)
        number = number << 8 | *at++;
    return number;
}

/* Takes it out of nginx's events, timers and queues. It stays one of nginx's connections, without a descriptor, so that there is a place
 * for it if it comes back. */
static void suspend(gift_t *gift)
{
    ngx_connection_t *c = gift->c;

    gift->idle = c->idle;
    if (c->read->timer_set)
        ngx_del_timer(c->read);
    if (c->write->timer_set)
        ngx_del_timer(c->write);
    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }
    if (c->write->posted) {
        ngx_delete_posted_event(c->write);
    }
    ngx_reusable_connection(c, 0);
    c->idle = 0;
    c->fd = (ngx_socket_t)-1;
}

static void resume(gift_t *gift, int fd)
{
    ngx_connection_t *c = gift->c;

    c->fd = fd;
    c->idle = gift->idle;
    c->read->ready = 0;
    c->write->ready = 1;
    ngx_reusable_connection(c, 1);
    ngx_add_timer(c->read, gift->rest);
    /* What has arrived meanwhile is an event of the next turn. */
    if (ngx_handle_read_event(c->read, 0) != NGX_OK)
        ngx_http_close_connection(c);
}

ngx_int_t ngx_http_tcpmig_give(ngx_http_tcpmig_link_t *link, ngx_connection_t *c, const char *host)
{
    struct tcpmig_session session = TCPMIG_SESSION_INIT;
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    gift_t *gift = gift_of(c);
    u_char payload[LENGTH];
    int fd = c->fd;

    if (gift == NULL)
        gift = new_gift(c);
    if (gift == NULL)
        return NGX_ERROR;
    gift->rest = rest_of(c);
    put(payload, c->listening->sockaddr->sa_family == AF_INET6 ? 6 : 4, 4);
    put(payload + 4, c->requests, 4);
    put(payload + 8, ngx_current_msec - c->start_time, 8);
    put(payload + 16, gift->rest, 8);
    layer.kind = KIND;
    layer.version = VERSION;
    layer.payload = payload;
    layer.payload_length = sizeof(payload);
    session.layers = &layer;
    session.layer_count = 1;
    /* While it has its descriptor. */
    if (ngx_del_conn(c, 0) != NGX_OK)
        return NGX_ERROR;
    suspend(gift);
    if (tcpmig_agent_give(link->agent, fd, (const char *)link->service->name.data, host, &session, (uint64_t)(uintptr_t)gift) ==
        TCPMIG_OK)
        return NGX_OK;
    ngx_log_error(NGX_LOG_WARN, c->log, 0, "tcpmig_service \"%V\": tcpmig_agent_give(): %s", &link->service->name, tcpmig_last_error());
    ngx_http_tcpmig_kept((uint64_t)(uintptr_t)gift, fd);
    return NGX_ERROR;
}

static gift_t *gift_by(uint64_t id)
{
    return (gift_t *)(uintptr_t)id;
}

ngx_connection_t *ngx_http_tcpmig_given(uint64_t id)
{
    return gift_by(id)->c;
}

void ngx_http_tcpmig_kept(uint64_t id, int fd)
{
    gift_t *gift = gift_by(id);

    gift->delay = gift->delay == 0 ? FIRST_DELAY : ngx_min(2 * gift->delay, LONGEST_DELAY);
    gift->not_before = ngx_current_msec + gift->delay;
    resume(gift, fd);
}

/* As nginx ends a connection, but that it has no descriptor any more. */
static void release(ngx_connection_t *c)
{
    ngx_pool_t *pool = c->pool;

#if (NGX_STAT_STUB)
    (void)ngx_atomic_fetch_add(ngx_stat_active, -1);
#endif
    c->destroyed = 1;
    c->read->closed = 1;
    c->write->closed = 1;
    ngx_free_connection(c);
    ngx_destroy_pool(pool);
}

void ngx_http_tcpmig_forget(uint64_t id)
{
    release(gift_by(id)->c);
}

/* ---- Arrivals */

static ngx_listening_t *listening_for(ngx_http_tcpmig_link_t *link, struct sockaddr *local, socklen_t length)
{
    ngx_listening_t *listening = ngx_cycle->listening.elts, *found = NULL;
    ngx_uint_t i;

    for (i = 0; i < ngx_cycle->listening.nelts; i++) {
        ngx_listening_t *one = &listening[i];

        if (one->handler != see_connection || one->sockaddr->sa_family != local->sa_family ||
            ngx_inet_get_port(one->sockaddr) != ngx_inet_get_port(local))
            continue;
        if (ngx_cmp_sockaddr(one->sockaddr, one->socklen, local, length, 1) == NGX_OK) {
            found = one;
            break;
        }
        if (ngx_inet_wildcard(one->sockaddr))
            found = one;
    }
    return found != NULL && conf_of(link, found, local) != NULL ? found : NULL;
}

/* The local end of a flow as a socket of this family (4 or 6) says it. */
static socklen_t local_end(const struct tcpmig_flow *flow, uint64_t family, ngx_sockaddr_t *local)
{
    ngx_memzero(local, sizeof(*local));
    if (family == 4) {
        local->sockaddr_in.sin_family = AF_INET;
        local->sockaddr_in.sin_port = htons(flow->local_port);
        memcpy(&local->sockaddr_in.sin_addr, flow->local, 4);
        return sizeof(local->sockaddr_in);
    }
    local->sockaddr_in6.sin6_family = AF_INET6;
    local->sockaddr_in6.sin6_port = htons(flow->local_port);
    if (flow->family == AF_INET6) {
        memcpy(&local->sockaddr_in6.sin6_addr, flow->local, 16);
    } else {
        local->sockaddr_in6.sin6_addr.s6_addr[10] = 0xff;
        local->sockaddr_in6.sin6_addr.s6_addr[11] = 0xff;
        memcpy(&local->sockaddr_in6.sin6_addr.s6_addr[12], flow->local, 4);
    }
    return sizeof(local->sockaddr_in6);
}

const char *ngx_http_tcpmig_objection(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    ngx_sockaddr_t local;
    uint64_t family;
    socklen_t length;

    if (event->layer_count != 1 || tcpmig_agent_layer(link->agent, 0, &layer) != TCPMIG_OK || strcmp(layer.kind, KIND) != 0 ||
        layer.version != VERSION || layer.payload_length != LENGTH)
        return "it is not a connection at rest of nginx";
    family = got(layer.payload, 4);
    if (family != 4 && family != 6)
        return "its socket has a family that this nginx does not know";
    length = local_end(&event->flow, family, &local);
    if (listening_for(link, &local.sockaddr, length) == NULL)
        return "this nginx does not listen on its address with tcpmig_service";
    if (ngx_cycle->free_connection_n <= link->taken)
        return "worker_connections are not enough";
    return NULL;
}

/* nginx's connection for a socket, as if it had been accepted; NULL if there is no room, and the socket is then the caller's. */
static ngx_connection_t *connection_for(int fd, ngx_listening_t *listening, struct sockaddr *peer, socklen_t length)
{
    ngx_pool_t *pool = ngx_create_pool(listening->pool_size, ngx_cycle->log);
    struct sockaddr *address;
    ngx_connection_t *c;
    ngx_log_t *log;
    u_char *text;

    if (pool == NULL)
        return NULL;
    log = ngx_palloc(pool, sizeof(*log));
    address = ngx_palloc(pool, length);
    text = ngx_pnalloc(pool, listening->addr_text_max_len);
    c = log != NULL && address != NULL && text != NULL ? ngx_get_connection(fd, ngx_cycle->log) : NULL;
    if (c == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }
#if (NGX_STAT_STUB)
    (void)ngx_atomic_fetch_add(ngx_stat_active, 1);
#endif
    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);
    *log = listening->log;
    log->data = NULL;
    log->handler = NULL;
    log->connection = c->number;
    pool->log = log;
    c->pool = pool;
    c->log = log;
    c->read->log = log;
    c->write->log = log;
    c->write->ready = 1;
    c->type = SOCK_STREAM;
    c->recv = ngx_recv;
    c->send = ngx_send;
    c->recv_chain = ngx_recv_chain;
    c->send_chain = ngx_send_chain;
    c->listening = listening;
    c->local_sockaddr = listening->sockaddr;
    c->local_socklen = listening->socklen;
    memcpy(address, peer, length);
    c->sockaddr = address;
    c->socklen = length;
    c->addr_text.data = text;
    c->addr_text.len = ngx_sock_ntop(address, length, text, listening->addr_text_max_len, 0);
    return c;
}

/* Lets nginx wait for the next request, for as long as the other host would have. */
static void rest_here(ngx_connection_t *c, ngx_msec_t rest)
{
    c->listening->handler(c);
    if (!c->destroyed && c->reusable && c->read->timer_set)
        ngx_add_timer(c->read, rest);
}

/* Writes what goes before anything else; then it rests. */
static void write_on(ngx_event_t *write)
{
    ngx_connection_t *c = write->data;
    unwritten_t *unwritten = c->data;
    ssize_t sent;

    while (unwritten->length > 0) {
        sent = write->timedout ? NGX_ERROR : c->send(c, unwritten->bytes, unwritten->length);
        if (sent == NGX_AGAIN && ngx_handle_write_event(write, 0) == NGX_OK)
            return;
        if (sent <= 0) {
            ngx_http_close_connection(c);
            return;
        }
        unwritten->bytes += sent;
        unwritten->length -= (size_t)sent;
    }
    if (write->timer_set)
        ngx_del_timer(write);
    rest_here(c, unwritten->rest);
}

/* nginx calls it if the worker ends whatever is under way. */
static void close_if_told(ngx_event_t *read)
{
    ngx_connection_t *c = read->data;

    if (c->close)
        ngx_http_close_connection(c);
}

static ngx_int_t begin_to_write(ngx_http_tcpmig_link_t *link, ngx_connection_t *c, const struct tcpmig_event *event, ngx_msec_t rest)
{
    ngx_http_core_srv_conf_t *server;
    ngx_http_core_loc_conf_t *location;
    unwritten_t *unwritten = ngx_pcalloc(c->pool, sizeof(*unwritten));

    if (unwritten == NULL)
        return NGX_ERROR;
    unwritten->rest = rest;
    unwritten->length = event->unwritten_length;
    if (unwritten->length > 0) {
        unwritten->bytes = ngx_pnalloc(c->pool, unwritten->length);
        if (unwritten->bytes == NULL || conf_of_connection(link, c) == NULL)
            return NGX_ERROR;
        memcpy(unwritten->bytes, event->unwritten, unwritten->length);
        server = conf_of_connection(link, c)->default_server;
        location = server->ctx->loc_conf[ngx_http_core_module.ctx_index];
        ngx_add_timer(c->write, location->send_timeout);
    }
    c->data = unwritten;
    c->read->handler = close_if_told;
    c->write->handler = write_on;
    write_on(c->write);
    return NGX_OK;
}

static const char *adopt(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    ngx_sockaddr_t local, peer;
    socklen_t local_length = sizeof(local), peer_length = sizeof(peer);
    ngx_listening_t *listening;
    const u_char *payload;
    ngx_connection_t *c;

    if (event->unprocessed_length > 0)
        return "bytes came with it, which one at rest does not have";
    if (tcpmig_agent_layer(link->agent, 0, &layer) != TCPMIG_OK)
        return tcpmig_last_error();
    if (ngx_nonblocking(event->fd) < 0 || getsockname(event->fd, &local.sockaddr, &local_length) < 0 ||
        getpeername(event->fd, &peer.sockaddr, &peer_length) < 0)
        return strerror(ngx_errno);
    listening = listening_for(link, &local.sockaddr, local_length);
    if (listening == NULL)
        return "this nginx does not listen on its address";
    c = connection_for(event->fd, listening, &peer.sockaddr, peer_length);
    if (c == NULL)
        return "there is no room for it";
    payload = layer.payload;
    c->requests = got(payload + 4, 4);
    c->start_time = ngx_current_msec - got(payload + 8, 8);
    if (begin_to_write(link, c, event, got(payload + 16, 8)) != NGX_OK)
        ngx_http_close_connection(c);
    return NULL;
}

void ngx_http_tcpmig_adopt(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    const char *why = adopt(link, event);

    if (why == NULL)
        return;
    ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0, "tcpmig_service \"%V\": a connection from host %s arrived and is closed: %s",
                  &link->service->name, event->host, why);
    close(event->fd);
}
