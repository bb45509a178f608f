/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * How a link to the agent comes about. The agent may be slow or absent, and the worker serves connections meanwhile: each attempt is a
 * thread, which writes to a descriptor when it is through.
 */
#include "ngx_http_tcpmig.h"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#define FIRST_PAUSE 500u
#define LONGEST_PAUSE 8000u

/* Of the worker until the thread begins, then of the thread until it has written, then of the worker again. */
struct ngx_http_tcpmig_attempt_s {
    int done; /* An eventfd. */
    int code;
    const char *path;
    struct tcpmig_service service;
    struct tcpmig_agent *agent;
    char error[512];
};

static void *attempt_thread(void *data)
{
    ngx_http_tcpmig_attempt_t *attempt = data;
    uint64_t one = 1;

    attempt->code = tcpmig_agent_connect(attempt->path, &attempt->agent);
    if (attempt->code == TCPMIG_OK)
        attempt->code = tcpmig_agent_register(attempt->agent, &attempt->service);
    if (attempt->code != TCPMIG_OK) {
        ngx_cpystrn((u_char *)attempt->error, (u_char *)tcpmig_last_error(), sizeof(attempt->error));
        tcpmig_agent_free(&attempt->agent);
    }
    if (write(attempt->done, &one, sizeof(one)) != sizeof(one))
        abort(); /* An eventfd takes its first number. */
    return NULL;
}

/* nginx's signals are for the worker's thread. */
static int start_thread(ngx_http_tcpmig_attempt_t *attempt)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_t thread;
    int error;

    error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &attributes, attempt_thread, attempt);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

static void free_attempt(ngx_http_tcpmig_link_t *link)
{
    ngx_http_tcpmig_unwatch(link->attempted);
    link->attempted = NULL;
    close(link->attempt->done);
    ngx_free(link->attempt);
    link->attempt = NULL;
}

static void try_again_later(ngx_http_tcpmig_link_t *link)
{
    if (link->ends)
        return;
    link->pause = link->pause == 0 ? FIRST_PAUSE : ngx_min(2 * link->pause, LONGEST_PAUSE);
    ngx_add_timer(&link->again, link->pause);
}

static void attempted(ngx_event_t *event)
{
    ngx_connection_t *c = event->data;
    ngx_http_tcpmig_link_t *link = c->data;
    ngx_http_tcpmig_attempt_t *attempt = link->attempt;
    struct tcpmig_agent *agent;
    ngx_uint_t level;
    uint64_t number;

    if (read(attempt->done, &number, sizeof(number)) != sizeof(number))
        return; /* It is not through. */
    agent = attempt->agent;
    if (link->ends) {
        free_attempt(link);
        tcpmig_agent_free(&agent);
        return;
    }
    if (agent == NULL) {
        /* Once aloud; the same again and again is of no interest. */
        level = link->pause == 0 ? NGX_LOG_ERR : NGX_LOG_INFO;
        ngx_log_error(level, ngx_cycle->log, 0, "tcpmig_service \"%V\": agent %s: %s (%s)",
                      &link->service->name, link->path, attempt->error, tcpmig_code_name(attempt->code));
        free_attempt(link);
        try_again_later(link);
        return;
    }
    free_attempt(link);
    link->pause = 0;
    ngx_http_tcpmig_link_connected(link, agent);
}

void ngx_http_tcpmig_connect(ngx_http_tcpmig_link_t *link)
{
    struct tcpmig_service service = TCPMIG_SERVICE_INIT;
    ngx_http_tcpmig_attempt_t *attempt;
    int error;

    if (link->attempt != NULL || link->ends)
        return;
    attempt = ngx_calloc(sizeof(*attempt), ngx_cycle->log);
    if (attempt == NULL) {
        try_again_later(link);
        return;
    }
    service.name = (const char *)link->service->name.data;
    service.addresses = link->service->addresses.elts;
    service.address_count = link->service->addresses.nelts;
    service.flags = TCPMIG_SERVICE_TAKES;
    attempt->service = service;
    attempt->path = link->path;
    attempt->done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (attempt->done < 0) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, ngx_errno, "eventfd() failed");
        ngx_free(attempt);
        try_again_later(link);
        return;
    }
    link->attempt = attempt;
    link->attempted = ngx_http_tcpmig_watch(attempt->done, attempted, link);
    error = link->attempted != NULL ? start_thread(attempt) : ENFILE;
    if (error != 0) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, error,
                      "tcpmig_service \"%V\": an attempt to connect to the agent cannot begin",
                      &link->service->name);
        free_attempt(link);
        try_again_later(link);
    }
}

void ngx_http_tcpmig_connect_end(ngx_http_tcpmig_link_t *link)
{
    if (link->again.timer_set)
        ngx_del_timer(&link->again);
}

void ngx_http_tcpmig_connect_abandon(ngx_http_tcpmig_link_t *link)
{
    /* Its thread still uses the rest, which goes with the process. */
    ngx_http_tcpmig_unwatch(link->attempted);
    link->attempted = NULL;
    link->attempt = NULL;
}

ngx_connection_t *ngx_http_tcpmig_watch(int fd, ngx_event_handler_pt handler, void *data)
{
    ngx_connection_t *c = ngx_get_connection(fd, ngx_cycle->log);

    if (c == NULL)
        return NULL;
    c->data = data;
    c->log = ngx_cycle->log;
    c->read->log = c->log;
    c->write->log = c->log;
    c->read->handler = handler;
    if (ngx_handle_read_event(c->read, 0) == NGX_OK)
        return c;
    ngx_http_tcpmig_unwatch(c);
    return NULL;
}

void ngx_http_tcpmig_unwatch(ngx_connection_t *c)
{
    if (c == NULL)
        return;
    if (c->read->active)
        ngx_del_event(c->read, NGX_READ_EVENT, 0);
    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }
    c->read->closed = 1;
    c->write->closed = 1;
    ngx_free_connection(c);
    c->fd = (ngx_socket_t)-1;
}
