/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The link of a worker to the agent, for one service: what the agent says, and what is done about it.
 */
#include "ngx_http_tcpmig.h"

/* How long until connections that had no rest are looked at again. */
#define LOOK_AGAIN 20u
/* So many are given at a time: the others go on here until it is their turn. */
#define MOST_AWAY 64u
/* How long one connection is waited for that somebody wants to move; the agent waits as long. */
#define WANTED_FOR 30000u
/* How often it is looked whether a worker that ends may do so. */
#define HOLD 100u

typedef struct {
    ngx_queue_t queue;
    struct tcpmig_flow flow;
    ngx_msec_t until;
    char host[1];
} wanted_t;

static void look(ngx_http_tcpmig_link_t *link);

/* ---- What is to leave */

static void free_hosts(ngx_http_tcpmig_link_t *link)
{
    ngx_uint_t i;

    for (i = 0; i < link->host_count; i++)
        ngx_free(link->hosts[i]);
    ngx_free(link->hosts);
    link->hosts = NULL;
    link->host_count = 0;
}

static void begin_to_drain(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    size_t i, length;

    free_hosts(link);
    link->hosts = ngx_calloc(event->host_count * sizeof(*link->hosts), ngx_cycle->log);
    for (i = 0; link->hosts != NULL && i < event->host_count; i++) {
        length = strlen(event->hosts[i]) + 1;
        link->hosts[i] = ngx_alloc(length, ngx_cycle->log);
        if (link->hosts[i] == NULL)
            break;
        memcpy(link->hosts[i], event->hosts[i], length);
        link->host_count++;
    }
    /* Without any host, which takes memory, nothing moves, and the drain has no end. */
    link->drains = 1;
    link->drain = event->id;
    link->said_left = UINT64_MAX;
    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0, "tcpmig_service \"%V\": connections leave", &link->service->name);
}

static void want(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    size_t length = strlen(event->host);
    wanted_t *wanted;

    /* All workers are asked. To look for one that is not here, again and again, would take time for nothing. */
    if (!ngx_http_tcpmig_has(link, &event->flow))
        return;
    wanted = ngx_alloc(sizeof(*wanted) + length, ngx_cycle->log);
    if (wanted == NULL)
        return;
    wanted->flow = event->flow;
    wanted->until = ngx_current_msec + WANTED_FOR;
    memcpy(wanted->host, event->host, length + 1);
    ngx_queue_insert_tail(&link->wanted, &wanted->queue);
}

static void forget_wanted(wanted_t *wanted)
{
    ngx_queue_remove(&wanted->queue);
    ngx_free(wanted);
}

static void forget_old_wanted(ngx_http_tcpmig_link_t *link)
{
    ngx_queue_t *at, *next;

    for (at = ngx_queue_head(&link->wanted); at != ngx_queue_sentinel(&link->wanted); at = next) {
        wanted_t *wanted = ngx_queue_data(at, wanted_t, queue);

        next = ngx_queue_next(at);
        if ((ngx_msec_int_t)(ngx_current_msec - wanted->until) >= 0)
            forget_wanted(wanted);
    }
}

static wanted_t *wanted_of(ngx_http_tcpmig_link_t *link, ngx_connection_t *c)
{
    struct tcpmig_flow flow;
    ngx_queue_t *at;

    if (ngx_queue_empty(&link->wanted) || tcpmig_flow_of(c->fd, &flow) != TCPMIG_OK)
        return NULL;
    for (at = ngx_queue_head(&link->wanted); at != ngx_queue_sentinel(&link->wanted); at = ngx_queue_next(at)) {
        wanted_t *wanted = ngx_queue_data(at, wanted_t, queue);

        if (memcmp(&wanted->flow, &flow, sizeof(flow)) == 0)
            return wanted;
    }
    return NULL;
}

static ngx_int_t leave(ngx_http_tcpmig_link_t *link, ngx_connection_t *c)
{
    wanted_t *wanted = wanted_of(link, c);
    const char *host = NULL;

    if (link->away >= MOST_AWAY)
        return NGX_DONE;
    if (wanted != NULL)
        host = wanted->host;
    else if (link->drains && link->host_count > 0 && !ngx_http_tcpmig_is_too_soon(c))
        host = link->hosts[link->next_host++ % link->host_count];
    if (host != NULL && ngx_http_tcpmig_give(link, c, host) == NGX_OK)
        link->away++;
    if (wanted != NULL)
        forget_wanted(wanted);
    return NGX_OK;
}

/* The agent offers nothing to who drains. So that connections can come again, this worker presents itself anew. */
static void end_drain(ngx_http_tcpmig_link_t *link)
{
    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0, "tcpmig_service \"%V\": no connection is left", &link->service->name);
    link->drains = 0;
    free_hosts(link);
    ngx_http_tcpmig_connect(link);
}

static void say_left(ngx_http_tcpmig_link_t *link)
{
    uint64_t left = ngx_http_tcpmig_count(link) + link->away + link->taken;

    if (left != link->said_left)
        tcpmig_agent_drained(link->agent, link->drain, left);
    link->said_left = left;
    if (left == 0)
        end_drain(link);
}

/* Gives what is at rest, and comes again while there is something to wait for. */
static void look(ngx_http_tcpmig_link_t *link)
{
    forget_old_wanted(link);
    if (link->agent == NULL || link->ends || (!link->drains && ngx_queue_empty(&link->wanted)))
        return;
    ngx_http_tcpmig_each_at_rest(link, leave);
    if (link->drains && link->away == 0)
        say_left(link);
    if ((link->drains || !ngx_queue_empty(&link->wanted)) && !link->look.timer_set)
        ngx_add_timer(&link->look, LOOK_AGAIN);
}

static void time_to_look(ngx_event_t *event)
{
    look(event->data);
}

/* ---- The end of the worker */

static void drop_agent(ngx_http_tcpmig_link_t *link)
{
    ngx_http_tcpmig_unwatch(link->connection);
    link->connection = NULL;
    tcpmig_agent_free(&link->agent);
}

/* nginx waits for timers before a worker ends: this one is there as long as connections are under way. */
static void hold(ngx_http_tcpmig_link_t *link)
{
    if (link->away + link->taken > 0) {
        if (!link->hold.timer_set)
            ngx_add_timer(&link->hold, HOLD);
        return;
    }
    if (link->hold.timer_set)
        ngx_del_timer(&link->hold);
    if (link->ends)
        drop_agent(link);
}

static void time_to_hold(ngx_event_t *event)
{
    hold(event->data);
}

/* nginx has asked the worker to end, or lets it end whatever is under way (worker_shutdown_timeout). */
static void end_with_worker(ngx_http_tcpmig_link_t *link, ngx_int_t at_once)
{
    link->ends = 1;
    ngx_http_tcpmig_connect_end(link);
    if (link->look.timer_set)
        ngx_del_timer(&link->look);
    if (at_once && link->away + link->taken > 0) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "tcpmig_service \"%V\": this worker ends, and %ui connections that are under way may be closed", &link->service->name,
                      link->away + link->taken);
        link->away = link->taken = 0;
    }
    hold(link);
}

/* ---- What the agent says */

/* How loudly to say that a connection does not move: thousands may not by one cause. */
static ngx_uint_t loudness(ngx_http_tcpmig_link_t *link)
{
    if (link->complained != 0 && ngx_current_msec - link->complained < 1000)
        return NGX_LOG_INFO;
    link->complained = ngx_current_msec;
    return NGX_LOG_WARN;
}

static void decide(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    const char *objection = NULL;
    ngx_uint_t level;

    if (link->ends)
        objection = "this worker of nginx ends";
    else if (link->drains)
        objection = "this worker of nginx gives its connections away";
    else
        objection = ngx_http_tcpmig_objection(link, event);
    if (objection != NULL) {
        level = loudness(link);
        ngx_log_error(level, ngx_cycle->log, 0, "tcpmig_service \"%V\": a connection from host %s is refused: %s",
                      &link->service->name, event->host, objection);
        tcpmig_agent_refuse(link->agent, event->id, objection);
    } else if (tcpmig_agent_take(link->agent, event->id) == TCPMIG_OK) {
        link->taken++;
    }
}

static void kept(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    ngx_connection_t *c = ngx_http_tcpmig_given(event->id);
    ngx_uint_t level = loudness(link);

    ngx_log_error(level, c->log, 0, "tcpmig_service \"%V\": a connection goes on here: %s (%s)", &link->service->name, event->reason,
                  event->code);
    ngx_http_tcpmig_kept(event->id, event->fd);
    link->away--;
}

static void lost(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    ngx_connection_t *c = ngx_http_tcpmig_given(event->id);

    ngx_log_error(NGX_LOG_ERR, c->log, 0, "tcpmig_service \"%V\": a connection is lost: %s", &link->service->name, event->reason);
    ngx_http_tcpmig_forget(event->id);
    link->away--;
}

static void handle(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event)
{
    switch (event->kind) {
    case TCPMIG_EVENT_DRAIN:
        begin_to_drain(link, event);
        break;
    case TCPMIG_EVENT_WANTED:
        want(link, event);
        break;
    case TCPMIG_EVENT_OFFER:
        decide(link, event);
        break;
    case TCPMIG_EVENT_WITHDRAWN:
        link->taken--;
        break;
    case TCPMIG_EVENT_ARRIVED:
        link->taken--;
        ngx_http_tcpmig_adopt(link, event);
        break;
    case TCPMIG_EVENT_MOVED:
        ngx_http_tcpmig_forget(event->id);
        link->away--;
        break;
    case TCPMIG_EVENT_KEPT:
        kept(link, event);
        break;
    case TCPMIG_EVENT_LOST:
        lost(link, event);
        break;
    case TCPMIG_EVENT_DOUBT:
        ngx_log_error(NGX_LOG_WARN, ngx_http_tcpmig_given(event->id)->log, 0,
                      "tcpmig_service \"%V\": nobody answers for a connection that was given", &link->service->name);
        break;
    default:
        break;
    }
}

static void agent_says(ngx_event_t *read)
{
    ngx_connection_t *c = read->data;
    ngx_http_tcpmig_link_t *link = c->data;
    struct tcpmig_event event;

    if (c->close) {
        end_with_worker(link, c->error);
        if (link->agent == NULL)
            return;
    }
    for (;;) {
        event.size = sizeof(event);
        if (tcpmig_agent_next_event(link->agent, &event) != TCPMIG_OK) {
            ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0, "tcpmig_agent_next_event(): %s", tcpmig_last_error());
            break;
        }
        if (event.kind == TCPMIG_EVENT_NONE)
            break;
        handle(link, &event);
    }
    look(link);
    hold(link);
}

/* ---- Its beginning and its end */

void ngx_http_tcpmig_link_connected(ngx_http_tcpmig_link_t *link, struct tcpmig_agent *agent)
{
    ngx_connection_t *c;

    /* The one before was asked to drain again meanwhile. */
    if (link->agent != NULL && (link->drains || link->away + link->taken > 0)) {
        tcpmig_agent_free(&agent);
        return;
    }
    c = ngx_http_tcpmig_watch(tcpmig_agent_fd(agent), agent_says, link);
    if (c == NULL) {
        tcpmig_agent_free(&agent);
        link->pause = 1000;
        ngx_add_timer(&link->again, link->pause);
        return;
    }
    /* So that it is told when the worker is asked to end. */
    c->idle = 1;
    if (link->agent != NULL)
        drop_agent(link);
    link->agent = agent;
    link->connection = c;
    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0, "tcpmig_service \"%V\" is registered at the agent of host %s", &link->service->name,
                  tcpmig_agent_host(agent));
}

static void time_to_connect(ngx_event_t *event)
{
    ngx_http_tcpmig_connect(event->data);
}

static void timer(ngx_event_t *event, ngx_http_tcpmig_link_t *link, ngx_event_handler_pt handler, unsigned cancelable)
{
    event->data = link;
    event->log = ngx_cycle->log;
    event->handler = handler;
    event->cancelable = cancelable;
}

void ngx_http_tcpmig_link_begin(ngx_http_tcpmig_link_t *link, ngx_http_tcpmig_service_t *service, char *path)
{
    link->service = service;
    link->path = path;
    ngx_queue_init(&link->wanted);
    timer(&link->again, link, time_to_connect, 1);
    timer(&link->look, link, time_to_look, 1);
    timer(&link->hold, link, time_to_hold, 0);
    ngx_http_tcpmig_connect(link);
}

void ngx_http_tcpmig_link_end(ngx_http_tcpmig_link_t *link)
{
    link->away = link->taken = 0;
    end_with_worker(link, 1);
    ngx_http_tcpmig_connect_abandon(link);
    free_hosts(link);
    while (!ngx_queue_empty(&link->wanted))
        forget_wanted(ngx_queue_data(ngx_queue_head(&link->wanted), wanted_t, queue));
}
