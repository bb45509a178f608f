/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Connections at rest that arrive from other hosts, and become connections of this nginx.
 */
#include "ngx_http_tcpmig.h"

/* One that arrived, with bytes that go before anything else. */
typedef struct {
    u_char *bytes;
    size_t length;
    ngx_msec_t rest; /* Afterwards. */
} unwritten_t;

static uint64_t got(const u_char *at, size_t bytes)
{
    uint64_t number = 0;

    while (bytes-- > 0)
        number = number << 8 | *at++;
    return number;
}

static ngx_listening_t *listening_for(ngx_http_tcpmig_link_t *link, struct sockaddr *local, socklen_t length)
{
    ngx_listening_t *listening = ngx_cycle->listening.elts, *found = NULL;
    ngx_uint_t i;

    for (i = 0; i < ngx_cycle->listening.nelts; i++) {
        ngx_listening_t *one = &listening[i];

        if (one->sockaddr->sa_family != local->sa_family ||
            ngx_inet_get_port(one->sockaddr) != ngx_inet_get_port(local))
            continue;
        if (ngx_cmp_sockaddr(one->sockaddr, one->socklen, local, length, 1) == NGX_OK) {
            found = one;
            break;
        }
        if (ngx_inet_wildcard(one->sockaddr))
            found = one;
    }
    return found != NULL && ngx_http_tcpmig_conf_of(link, found, local) != NULL ? found : NULL;
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

    if (event->layer_count != 1 || tcpmig_agent_layer(link->agent, 0, &layer) != TCPMIG_OK ||
        strcmp(layer.kind, NGX_HTTP_TCPMIG_KIND) != 0 || layer.version != NGX_HTTP_TCPMIG_VERSION ||
        layer.payload_length != NGX_HTTP_TCPMIG_LENGTH)
        return "it is not a connection at rest of nginx";
    family = got(layer.payload, 4);
    if (family != 4 && family != 6)
        return "its socket has a family that this nginx does not know";
    length = local_end(&event->flow, family, &local);
    if (listening_for(link, &local.sockaddr, length) == NULL)
        return "this nginx does not listen on its address with tcpmig_service";
    /* With fewer than that nginx closes others that are at rest. */
    if (ngx_cycle->free_connection_n <= ngx_cycle->connection_n / 16 + link->taken + 1)
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

/* Lets nginx wait for the next request. */
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

static ngx_int_t begin_to_write(ngx_connection_t *c, const struct tcpmig_event *event, unwritten_t *unwritten, ngx_msec_t timeout)
{
    unwritten->length = event->unwritten_length;
    if (unwritten->length > 0) {
        unwritten->bytes = ngx_pnalloc(c->pool, unwritten->length);
        if (unwritten->bytes == NULL)
            return NGX_ERROR;
        memcpy(unwritten->bytes, event->unwritten, unwritten->length);
        ngx_add_timer(c->write, timeout);
    }
    c->data = unwritten;
    c->read->handler = close_if_told;
    c->write->handler = write_on;
    write_on(c->write);
    return NGX_OK;
}

/* It rests as long as the other host would have let it, and as nginx does here. */
static ngx_msec_t rest_of_arrival(uint64_t there, ngx_msec_t here)
{
    here = ngx_max(here, NGX_HTTP_TCPMIG_SHORTEST_REST);
    return there < here ? ngx_max((ngx_msec_t)there, NGX_HTTP_TCPMIG_SHORTEST_REST) : here;
}

static const char *adopt(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    ngx_sockaddr_t local, peer;
    socklen_t local_length = sizeof(local), peer_length = sizeof(peer);
    ngx_http_core_loc_conf_t *location;
    ngx_listening_t *listening;
    const u_char *payload;
    unwritten_t *unwritten;
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
    location = ngx_http_tcpmig_conf_of(link, listening, &local.sockaddr)->default_server->ctx->loc_conf[ngx_http_core_module.ctx_index];
    unwritten = ngx_pcalloc(c->pool, sizeof(*unwritten));
    if (unwritten != NULL)
        unwritten->rest = rest_of_arrival(got(payload + 16, 8), location->keepalive_timeout);
    if (unwritten == NULL || begin_to_write(c, event, unwritten, location->send_timeout) != NGX_OK)
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
