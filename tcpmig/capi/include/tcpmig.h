/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * tcpmig.h: moves live TCP connections, and the sessions on them, between hosts.
 *
 * Rules that hold for every function:
 *
 * - Those that return int give TCPMIG_OK (0) or another enum tcpmig_code. After a failure tcpmig_last_error() says why, for a
 *   person to read. Each function says what it leaves behind on success; on failure everything is as it was before the call,
 *   unless the function says otherwise.
 * - A handle (struct tcpmig_locker, tcpmig_image, tcpmig_frozen, tcpmig_prepared, tcpmig_restored, tcpmig_agent,
 *   tcpmig_upgrade) may be used from any thread, from one at a time. Functions that end a handle take its address and set it to NULL; NULL in its place is not an error for the
 *   functions whose names end in _free.
 * - Nothing of yours is called but what you gave in struct tcpmig_lock_operations, and that on the thread of your own call. The
 *   library sets no signal handler and changes no process-wide setting. A thread that it starts has all signals blocked.
 * - Bad input is an error (TCPMIG_INVALID, TCPMIG_IMAGE), never the end of the process. The exceptions are C's own: a pointer
 *   that points to something else, and an allocation that fails, which ends the process.
 * - After fork() the child uses no handle of its parent.
 * - A struct that begins with size_t size can grow in later versions: set it to sizeof of that struct (the _INIT macros do).
 *   Others stay as they are.
 * - Times are milliseconds, strings end with a NUL, and are UTF-8. Socket addresses are those of the calling thread's network
 *   namespace.
 *
 * The groups of functions are independent of each other: "one connection" needs Linux 5.14, and CAP_NET_ADMIN in the user namespace
 * that owns the network namespace for tcpmig_freeze() and tcpmig_prepare(), CAP_NET_RAW for connections that one side has closed.
 * "Sessions through the agent" needs no privilege, and an agent (tcpmig agent) on each host. "Upgrade in place" needs nothing.
 */
#ifndef TCPMIG_H
#define TCPMIG_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Those of this header; tcpmig_version() has those of the library that is linked. */
#define TCPMIG_VERSION_MAJOR 0
#define TCPMIG_VERSION_MINOR 1
#define TCPMIG_VERSION_PATCH 0

/* "0.1.0". */
const char *tcpmig_version(void);

/* ---- Errors ---------------------------------------------------------------------------------------------------------------- */

/* Codes stay as they are; there can be more of them in later versions. */
enum tcpmig_code {
TCPMIG_OK = 0,
    TCPMIG_INVALID = 1,     /* An argument: NULL, a descriptor that is not open, a name that does not exist, an unknown flag. */
    TCPMIG_NOT_MOVABLE = 2, /* The connection cannot be moved, and the message says why. Others can. */
    TCPMIG_PERMISSION = 3,  /* The process lacks a capability. */
    TCPMIG_UNSUPPORTED = 4, /* The kernel or the locker has no such thing. */
    TCPMIG_LOCKED = 5,      /* Somebody, perhaps this process, holds a lock of this connection. */
    TCPMIG_NOT_HELD = 6,    /* The lock has ended: its lease ran out, or somebody ended it. */
    TCPMIG_MOVED_ON = 7,    /* The connection is not as it was captured any more. */
    TCPMIG_RESET = 8,       /* The peer reset the connection while it stood still. */
    TCPMIG_IMAGE = 9,       /* The bytes are not an image, damaged, cut, of an unknown version, or not of a connection. */
    TCPMIG_OPTION = 10,     /* This host cannot honour a socket option of the connection; see TCPMIG_LENIENT. */
    TCPMIG_OCCUPIED = 11,   /* Another socket of this host has the connection's addresses and ports. */
    TCPMIG_SYSTEM = 12,     /* A system call failed: tcpmig_last_errno(). */
    TCPMIG_SOME = 13,       /* Of many, at least one failed. */
    TCPMIG_INTERNAL = 14,   /* A defect of the library. The handles of the call can only be freed. */
    TCPMIG_UNREACHABLE = 15,/* There is no agent, it does not talk to this user, or it is gone. */
    TCPMIG_REFUSED = 16     /* The agent refuses, and the message says why. */
};

/* The message of the last call on this thread that failed, "" if none has. Valid until the next one fails on this thread. */
const char *tcpmig_last_error(void);

/* The errno of the last call on this thread that failed, if a system call was the cause; else 0. */
int tcpmig_last_errno(void);

/* After a call with many connections that gave TCPMIG_SOME: the message of one of them, by its index; "" if that one did not
 * fail. Valid until the next such call on this thread. */
const char *tcpmig_last_error_of(size_t index);

/* "TCPMIG_NOT_MOVABLE" for 2; "unknown" for numbers that no code has. */
const char *tcpmig_code_name(int code);

/* ---- One connection: its name ------------------------------------------------------------------------------------------------ */

/* The ends of a connection, seen from the host that holds it. */
struct tcpmig_flow {
    uint8_t local[16];    /* In network byte order; IPv4 in the first four bytes, the others are 0. */
    uint8_t remote[16];   /* That of the peer. */
    uint16_t local_port;  /* In the byte order of the host. */
    uint16_t remote_port; /* That of the peer. */
    uint16_t family;      /* AF_INET or AF_INET6: that of the packets, also if a socket of IPv6 carries IPv4. */
    uint16_t reserved;    /* 0. */
};

/* The longest text of a flow, with its NUL. */
#define TCPMIG_FLOW_TEXT 108

/* Writes "10.0.0.1:80,10.0.0.9:51234" into text. */
int tcpmig_flow_text(const struct tcpmig_flow *flow, char text[TCPMIG_FLOW_TEXT]);

/* The ends of the connection of this socket. */
int tcpmig_flow_of(int fd, struct tcpmig_flow *flow);

/* ---- One connection: whether it can be moved ----------------------------------------------------------------------------- */

struct tcpmig_probe {
    size_t size;
    struct tcpmig_flow flow;
    uint32_t state;   /* As in struct tcp_info: 1 is ESTABLISHED. */
    uint32_t unread;  /* Bytes that have arrived and that the application has not read. */
    uint32_t unacked; /* Bytes that it has written and that the peer has not acknowledged, sent or not. */
    uint32_t unsent;  /* Those of them that were not sent yet. */
};

#define TCPMIG_PROBE_INIT { sizeof(struct tcpmig_probe), { { 0 }, { 0 }, 0, 0, 0, 0 }, 0, 0, 0, 0 }

/* Says whether a connection can be moved, and fills in *probe, which may be NULL. Changes nothing of the socket, and needs no
 * privilege.
 *
 * TCPMIG_NOT_MOVABLE with the reason; *probe is then as it was. */
int tcpmig_probe(int fd, struct tcpmig_probe *probe);

/* ---- One connection: who keeps its packets away -------------------------------------------------------------------------- */

/* Packets with this firewall mark (SO_MARK) have to pass every lock, and no connection may have it: the library sends segments
 * with it to the host itself where a connection is restored that one side has closed. */
#define TCPMIG_INJECT_MARK 0x7463706du

struct tcpmig_locker;

/* Opens a locker by its name: "nftables" (the kernel's packet filter; the only one that redirects and the one to choose),
 * "iptables", "iptables-nft", "iptables-legacy", "link:DEVICE" (unplugs it), "none" (you keep the packets away yourself, for as
 * long as the connection stands still). It is one of the calling thread's network namespace, also when other threads use it.
 *
 * On success *locker is yours until tcpmig_locker_free(). */
int tcpmig_locker_open(const char *name, struct tcpmig_locker **locker);

/* In tcpmig_lock_operations.flags: packets with TCPMIG_INJECT_MARK pass. */
#define TCPMIG_LOCK_EXEMPTS 1u

/* A locker of your own. Its functions return 0 or an errno. They are called on the thread that calls the library, and must
 * return: neither longjmp() nor C++ exceptions may leave them. They must not call the library with the handle of that call. */
struct tcpmig_lock_operations {
    size_t size;
    uint32_t flags;
    /* Lets no packet of these connections pass in either direction until unlock, and for lease_ms at most: all of them or none.
     * EBUSY if one of them is locked already. *lock names the lock in the functions below. */
    int (*lock)(void *context, const struct tcpmig_flow *flows, size_t count, uint32_t lease_ms, void **lock);
    /* The lock ends lease_ms from now, or later if it would end later anyway. ENOENT if it has ended. */
    int (*renew)(void *context, void *lock, uint32_t lease_ms);
    /* Ends the lock. It is not used any more, also after an error. One whose lease ran out before is not an error. */
    int (*unlock)(void *context, void *lock);
    /* Leaves the lock to its lease: what was allocated for it can be freed, and packets must not pass before the lease ends. */
    void (*leave)(void *context, void *lock);
};

/* A locker that calls these functions with this context, which has to outlive the locker and all handles that were made with it.
 * operations is copied.
 *
 * On success *locker is yours until tcpmig_locker_free(). */
int tcpmig_locker_custom(const struct tcpmig_lock_operations *operations, void *context, struct tcpmig_locker **locker);

/* Locks that were made with it stay, and so do handles that hold them. */
void tcpmig_locker_free(struct tcpmig_locker **locker);

/* ---- One connection: what is carried -------------------------------------------------------------------------------------- */

/* The state of one protocol or application on a connection. */
struct tcpmig_layer {
    size_t size;
    const char *kind;      /* What the payload is, for instance a reversed domain name; 255 bytes at most. */
    const void *payload;   /* What the software of that kind needs to go on with the session. */
    size_t payload_length; /* Its bytes. */
    uint32_t version;      /* Of the payload, counted by its kind. */
};

#define TCPMIG_LAYER_INIT { sizeof(struct tcpmig_layer), NULL, NULL, 0, 0 }

/* A connection as bytes: addresses, sequence numbers, queues, options, and the layers on it. It has what the application has
 * sent and received: treat it as you treat that. Its memory is wiped when it is freed. */
struct tcpmig_image;

/* Makes an image of bytes, which have to be one image and nothing else. They are copied.
 *
 * On success *image is yours until tcpmig_image_free(). */
int tcpmig_image_decode(const void *bytes, size_t length, struct tcpmig_image **image);

/* Reads an image from a descriptor (a file, a pipe, a stream socket), and not a byte more. Waits until it is there.
 *
 * On success *image is yours until tcpmig_image_free(). On failure some bytes may have been read. */
int tcpmig_image_read(int fd, struct tcpmig_image **image);

/* Writes an image to a descriptor; one of a file is on the disk when this returns (fsync). A pipe that nobody reads raises SIGPIPE
 * as write() does, a socket does not.
 *
 * On failure some bytes may have been written. */
int tcpmig_image_write(const struct tcpmig_image *image, int fd);

/* The bytes of an image, which are valid as long as it is. */
int tcpmig_image_bytes(const struct tcpmig_image *image, const void **bytes, size_t *length);

/* The ends of its connection. */
int tcpmig_image_flow(const struct tcpmig_image *image, struct tcpmig_flow *flow);

/* How many layers it has; 0 for NULL. */
size_t tcpmig_image_layers(const struct tcpmig_image *image);

/* One of its layers, counted from the bottom up; what it points to is valid as long as the image is. A connection whose layers
 * you do not all know must not go on here. */
int tcpmig_image_layer(const struct tcpmig_image *image, size_t index, struct tcpmig_layer *layer);

void tcpmig_image_free(struct tcpmig_image **image);

/* ---- One connection: taking it off this host --------------------------------------------------------------------------------
 *
 *     tcpmig_freeze -> tcpmig_capture -> (write the image) -> tcpmig_discard    it lives where the image is restored
 *                                                         \-> tcpmig_keep       it goes on here
 *
 * Never restore an image of a connection that goes on here: two owners are worse than none.
 */

/* A connection that stands still: its packets are locked, and its socket takes and sends nothing whatever becomes of the lock. */
struct tcpmig_frozen;

/* Locks a connection's packets for lease_ms and freezes its socket. Renew the lock (tcpmig_frozen_renew) if it can take longer.
 *
 * On success the library owns fd, and *frozen is yours: until tcpmig_keep() or tcpmig_discard() nobody may read, write, change or
 * close fd, in any process that shares it. On failure fd is yours and the connection goes on. */
int tcpmig_freeze(int fd, const struct tcpmig_locker *locker, uint32_t lease_ms, struct tcpmig_frozen **frozen);

/* Freezes many connections, which are locked in one step where the locker can. codes[i] and frozen[i] say what became of fds[i];
 * frozen[i] is NULL where codes[i] is not TCPMIG_OK.
 *
 * TCPMIG_SOME if one failed: tcpmig_last_error_of(). With any other failure none is frozen, and codes is not filled in. */
int tcpmig_freeze_many(const int *fds, size_t count, const struct tcpmig_locker *locker, uint32_t lease_ms,
                       struct tcpmig_frozen **frozen, int *codes);

/* Reads a frozen connection, with the layers that run on it from the bottom up, and with what has arrived for it since it was
 * locked. Bytes that you have read from it and not processed, and bytes that you have not written yet, belong into a layer of
 * yours. It can be captured again; the newest image counts.
 *
 * On success *image is yours until tcpmig_image_free(). In any case the connection stays frozen. TCPMIG_RESET if the peer has
 * reset it. */
int tcpmig_capture(struct tcpmig_frozen *frozen, const struct tcpmig_layer *layers, size_t count, struct tcpmig_image **image);

/* Sends the connection's packets on to another host of the link, whose address is target, for lease_ms and longer while there is
 * traffic. Only nftables can. What arrived before and is not in an image yet is in the one that is captured next.
 *
 * On failure the connection stays locked and frozen. */
int tcpmig_redirect(struct tcpmig_frozen *frozen, const char *target, uint32_t lease_ms);

/* Prolongs the lock or redirect: it ends no sooner than its own lease from now. The connection stays frozen in any case. */
int tcpmig_frozen_renew(struct tcpmig_frozen *frozen);

/* The connection goes on here. Its descriptor is yours again, as it was; *frozen is NULL, also on failure.
 *
 * On failure the descriptor is yours too, and the message says what of the connection could not be undone: its packets stay locked
 * until the lease ends, or it is frozen still (TCP_REPAIR). */
int tcpmig_keep(struct tcpmig_frozen **frozen);

/* Ends the connection on this host without a packet and closes its descriptor, once the image is safe. The lock or redirect stays
 * until its lease ends, so that a late packet of the peer draws no RST.
 *
 * TCPMIG_MOVED_ON if the connection is not as in the image that was captured last, or was not captured: it stays frozen, *frozen is
 * yours still, and no image of it may be used. With TCPMIG_SYSTEM the descriptor was closed as silently, and *frozen is NULL. */
int tcpmig_discard(struct tcpmig_frozen **frozen);

/* The ends of a frozen connection. */
int tcpmig_frozen_flow(const struct tcpmig_frozen *frozen, struct tcpmig_flow *flow);

/* ---- One connection: taking it in --------------------------------------------------------------------------------------------
 *
 *     tcpmig_prepare -> tcpmig_activate -> (write what is unwritten) -> your server goes on
 *                  \-> tcpmig_prepared_free
 */

/* For tcpmig_prepare: options that this host cannot honour are left out and named (tcpmig_restored_warning) instead of refused. */
#define TCPMIG_LENIENT 1u

/* A connection that is rebuilt, locked and silent. */
struct tcpmig_prepared;

/* Locks the packets of an image's connection for lease_ms and rebuilds it. Its local address has to be on this host; nothing of
 * the connection can be seen from outside. The image stays yours.
 *
 * On success *prepared is yours until tcpmig_activate() or tcpmig_prepared_free(). On failure nothing is left of it. */
int tcpmig_prepare(const struct tcpmig_image *image, const struct tcpmig_locker *locker, uint32_t lease_ms, uint32_t flags,
                   struct tcpmig_prepared **prepared);

/* Like tcpmig_prepare() with many images, whose connections are locked in one step where the locker can. codes[i] and prepared[i]
 * say what became of images[i]; prepared[i] is NULL where codes[i] is not TCPMIG_OK.
 *
 * TCPMIG_SOME if one failed: tcpmig_last_error_of(). With any other failure nothing is left, and codes is not filled in. */
int tcpmig_prepare_many(const struct tcpmig_image *const *images, size_t count, const struct tcpmig_locker *locker,
                        uint32_t lease_ms, uint32_t flags, struct tcpmig_prepared **prepared, int *codes);

/* Prolongs the lock, and locks anew if it has ended. The connection stays prepared in any case. */
int tcpmig_prepared_renew(struct tcpmig_prepared *prepared);

/* What is left to do for a connection that lives. */
struct tcpmig_restored;

/* Lets the connection live: what arrived for it meanwhile becomes part of it, its packets are unlocked, and redirects of them that
 * this host has end. Do it only when nothing can let it live elsewhere any more.
 *
 * On success *fd is the connection's socket and yours, *prepared is NULL, and *restored is yours until tcpmig_restored_free().
 * On failure the connection is gone from this host without a packet, and *prepared holds no more than the lock of its packets, for
 * as long as they may come here. After TCPMIG_MOVED_ON it must not go on elsewhere either: it had taken bytes of the peer. */
int tcpmig_activate(struct tcpmig_prepared **prepared, int *fd, struct tcpmig_restored **restored);

/* Takes the connection back without a packet, and unlocks. */
void tcpmig_prepared_free(struct tcpmig_prepared **prepared);

/* Bytes that the application had written, that were never sent and that the send buffer does not take now: write them before
 * anything else. Mostly there are none. Valid until tcpmig_restored_free(). */
int tcpmig_restored_unwritten(const struct tcpmig_restored *restored, const void **bytes, size_t *length);

/* An option that the connection had and does not have here, as a text: "SO_RCVBUF=8388608: above net.core.rmem_max of this host
 * (EPERM)". NULL where there is none of this index, counted from 0. Valid until tcpmig_restored_free(). */
const char *tcpmig_restored_warning(const struct tcpmig_restored *restored, size_t index);

/* The connection lives on. */
void tcpmig_restored_free(struct tcpmig_restored **restored);

/* ---- Sessions through the agent ----------------------------------------------------------------------------------------------
 *
 * The agent of this host moves connections for servers that have no privileges. A server connects to it, puts
 * tcpmig_agent_fd() into its event loop, and takes events when that is readable.
 *
 *     tcpmig_agent_give -> TCPMIG_EVENT_MOVED, _KEPT or _LOST, perhaps after _DOUBT
 *     TCPMIG_EVENT_OFFER -> tcpmig_agent_take -> TCPMIG_EVENT_ARRIVED or _WITHDRAWN
 *                       \-> tcpmig_agent_refuse
 *     TCPMIG_EVENT_DRAIN -> tcpmig_agent_give for each connection -> tcpmig_agent_drained
 *
 * The link to the agent is kept by a thread of the library, which calls nothing of yours. If the agent ends, connections go on: the
 * library finds the next one, registers again, and asks what became of the connections that were being given.
 */

struct tcpmig_agent;

/* The agent's socket unless its configuration says otherwise. */
#define TCPMIG_AGENT_SOCKET "/run/tcpmig/agent.sock"

/* Connects to the agent at this socket, and waits until it has greeted; that takes ten seconds at most.
 *
 * On success *agent is yours until tcpmig_agent_free(). TCPMIG_UNREACHABLE if there is none, or if it does not talk to this
 * user. */
int tcpmig_agent_connect(const char *path, struct tcpmig_agent **agent);

/* Ends it. Answers that are outstanding are not waited for: a connection that was given and is kept is closed, and one that arrives
 * is. So wait for the answers first. */
void tcpmig_agent_free(struct tcpmig_agent **agent);

/* A descriptor that is readable while there are events (EPOLLIN, level- or edge-triggered). It stays the library's: do not read or
 * close it. -1 for NULL. */
int tcpmig_agent_fd(const struct tcpmig_agent *agent);

/* The name of this host, as the other hosts know it. Valid as long as the agent; "" for NULL. */
const char *tcpmig_agent_host(const struct tcpmig_agent *agent);

/* In tcpmig_service.flags: it takes connections in, and gets TCPMIG_EVENT_OFFER. */
#define TCPMIG_SERVICE_TAKES 1u

struct tcpmig_service {
    size_t size;
    const char *name;             /* That of the agent's configuration. */
    const char *const *addresses; /* On which it serves: "10.0.0.1:80", "[::]:80". One at least. */
    size_t address_count;
    uint32_t flags;
};

#define TCPMIG_SERVICE_INIT { sizeof(struct tcpmig_service), NULL, NULL, 0, 0 }

/* Registers a service for as long as the agent handle lives, and waits for the answer.
 *
 * TCPMIG_REFUSED if the agent's configuration does not allow it. */
int tcpmig_agent_register(struct tcpmig_agent *agent, const struct tcpmig_service *service);

/* What of a session is to go on elsewhere, beside its connection. Servers that keep the bytes that they have read and not processed,
 * and those that they have produced and not written, in buffers of their own, can give a connection away at any moment. */
struct tcpmig_session {
    size_t size;
    const struct tcpmig_layer *layers; /* The application's state, from the bottom up; none is allowed. */
    size_t layer_count;
    const struct iovec *unprocessed; /* Bytes that were read from the socket and not processed, in order. */
    size_t unprocessed_count;
    const struct iovec *unsent; /* Bytes that were produced and not written to the socket, in order. */
    size_t unsent_count;
};

#define TCPMIG_SESSION_INIT { sizeof(struct tcpmig_session), NULL, 0, NULL, 0, NULL, 0 }

/* Gives a connection of a service away to a host, by its name. What session points to is copied; NULL stands for a session of
 * nothing. Up to as many as the agent allows are under way at a time, the others wait for their turn.
 *
 * On success the library owns fd, and nobody may use it: TCPMIG_EVENT_MOVED, _KEPT or _LOST follows, with this id; with _KEPT it is
 * yours again, under its number. On failure fd is yours and nothing happened. */
int tcpmig_agent_give(struct tcpmig_agent *agent, int fd, const char *service, const char *host,
                      const struct tcpmig_session *session, uint64_t id);

enum tcpmig_event_kind {
    TCPMIG_EVENT_NONE = 0,      /* There is none now. */
    TCPMIG_EVENT_DRAIN = 1,     /* Somebody wants the service empty: id, service, hosts. Accept nothing more, and give the
                                 * connections to these hosts in turn. */
    TCPMIG_EVENT_WANTED = 2,    /* Somebody wants one connection to move: service, flow, host. Give it if it is here. */
    TCPMIG_EVENT_OFFER = 3,     /* A connection wants to come: id, service, flow, host (from), layers. Answer soon: nobody serves it
                                 * meanwhile, and after two seconds the agent refuses it. */
    TCPMIG_EVENT_WITHDRAWN = 4, /* One that was taken does not come after all: id. */
    TCPMIG_EVENT_ARRIVED = 5,   /* One that was taken is here: id of the offer, service, flow, host, layers, fd, which is yours,
                                 * unwritten and unprocessed. */
    TCPMIG_EVENT_MOVED = 6,     /* What was given lives on the other host: id. fd was closed. */
    TCPMIG_EVENT_KEPT = 7,      /* What was given goes on here: id, fd, which is yours again, code, reason. */
    TCPMIG_EVENT_LOST = 8,      /* What was given is over: id, reason. fd was closed. */
    TCPMIG_EVENT_DOUBT = 9,     /* What was given lives on the other host or nowhere, and nobody answers for it: id. The agent goes
                                 * on asking, and one of the three above follows. */
    TCPMIG_EVENT_SUCCESSOR = 10,      /* The next version of this server accepts: id is its process. Accept nothing more, and give
                                       * it what there is. */
    TCPMIG_EVENT_SUCCESSOR_GONE = 11, /* It has ended, or hangs: accept again. What it did not take goes on here. */
    TCPMIG_EVENT_COMPLETE = 12        /* The old version has nothing more. */
};

/* What it points to is valid until the next event is taken, or the handle freed. */
struct tcpmig_event {
    size_t size;
    uint64_t id; /* That of tcpmig_agent_give(), or of the offer or drain. */
    uint32_t kind;
    int32_t fd; /* -1 if it has none. */
    struct tcpmig_flow flow;
    const char *service;
    const char *host;
    const char *const *hosts;
    size_t host_count;
    const char *code; /* One of AGENT.md, such as "full" or "unreachable". */
    const char *reason;
    size_t layer_count; /* tcpmig_agent_layer() has them. */
    const void *unwritten; /* To be written before anything else. */
    size_t unwritten_length;
    const void *unprocessed; /* To be processed as if it had just been read. */
    size_t unprocessed_length;
};

/* Takes the next event; its kind is TCPMIG_EVENT_NONE if there is none. Never waits. */
int tcpmig_agent_next_event(struct tcpmig_agent *agent, struct tcpmig_event *event);

/* One of the layers of the event that was taken last, as they were given to tcpmig_agent_give(), counted from the bottom up; what it
 * points to is valid as long as what the event points to. */
int tcpmig_agent_layer(const struct tcpmig_agent *agent, size_t index, struct tcpmig_layer *layer);

/* Takes the connection of an offer in. What this says must hold: you know all of its layers and can go on. TCPMIG_EVENT_ARRIVED or
 * _WITHDRAWN follows.
 *
 * TCPMIG_INVALID if there is no such offer, or it was answered. */
int tcpmig_agent_take(struct tcpmig_agent *agent, uint64_t offer);

/* Refuses the connection of an offer: it goes on where it is.
 *
 * TCPMIG_INVALID as for tcpmig_agent_take(). */
int tcpmig_agent_refuse(struct tcpmig_agent *agent, uint64_t offer, const char *reason);

/* Says how many connections are left of a drain: when you are through with it, and again when that is 0.
 *
 * TCPMIG_INVALID if there is no such drain, or 0 was said of it. */
int tcpmig_agent_drained(struct tcpmig_agent *agent, uint64_t drain, uint64_t left);

/* ---- Upgrade in place ----------------------------------------------------------------------------------------------------------
 *
 * The next version of a server takes its listeners and sessions over on the same host, without privileges: two processes of one user,
 * and a Unix socket. Both versions run the same code:
 *
 *     tcpmig_upgrade_begin -> tcpmig_upgrade_listener, or listen() if there is no older version
 *                          -> tcpmig_upgrade_pass -> tcpmig_upgrade_ready
 *     TCPMIG_EVENT_OFFER -> tcpmig_upgrade_take -> TCPMIG_EVENT_ARRIVED            until TCPMIG_EVENT_COMPLETE
 *     TCPMIG_EVENT_SUCCESSOR -> tcpmig_upgrade_give -> TCPMIG_EVENT_MOVED or _KEPT   -> tcpmig_upgrade_finish
 *
 * A session is the old version's until it has ordered the new one to go on with it: whatever happens to the new one before, it goes on
 * in the old one. A connection that waits to be accepted is accepted by either.
 */

struct tcpmig_upgrade;

/* Connects to the older version of this server that waits at this path, if there is one; then *had_older is 1, else 0. Until
 * tcpmig_upgrade_ready() that goes on as if nothing had happened.
 *
 * On success *upgrade is yours until tcpmig_upgrade_free(). TCPMIG_PERMISSION if the older version is another user's process. */
int tcpmig_upgrade_begin(const char *path, struct tcpmig_upgrade **upgrade, int *had_older);

/* Ends it. A session that was given and has no answer yet is closed here, and one that arrives is: so wait for the answers first. */
void tcpmig_upgrade_free(struct tcpmig_upgrade **upgrade);

/* A descriptor that is readable while there are events, as tcpmig_agent_fd(). -1 for NULL. */
int tcpmig_upgrade_fd(const struct tcpmig_upgrade *upgrade);

/* The listener that the older version passes by this name; *fd is yours. Before tcpmig_upgrade_ready().
 *
 * TCPMIG_INVALID if it has none, or if it was taken before. */
int tcpmig_upgrade_listener(struct tcpmig_upgrade *upgrade, const char *name, int *fd);

/* Passes a duplicate of this listener on to the next version, by this name. Before tcpmig_upgrade_ready(). fd stays yours. */
int tcpmig_upgrade_pass(struct tcpmig_upgrade *upgrade, const char *name, int fd);

/* Says that this version accepts from now on, and waits for the next one at the path. The older one stops accepting, and gives what it
 * has: TCPMIG_EVENT_OFFER and _ARRIVED follow.
 *
 * On failure the older version goes on, if the message does not say otherwise, and the handle can only be freed. */
int tcpmig_upgrade_ready(struct tcpmig_upgrade *upgrade);

/* Gives a session to the next version, which has made itself known by TCPMIG_EVENT_SUCCESSOR. See tcpmig_agent_give().
 *
 * On success the library owns fd, and nobody may use it: TCPMIG_EVENT_MOVED, _KEPT or _LOST follows, with this id; with _KEPT it is
 * yours again, under its number. On failure fd is yours and nothing happened; TCPMIG_UNREACHABLE if there is no next version. */
int tcpmig_upgrade_give(struct tcpmig_upgrade *upgrade, int fd, const struct tcpmig_session *session, uint64_t id);

/* Says that nothing else will come, and waits until that is written: this version ends.
 *
 * TCPMIG_UNREACHABLE if the next version has ended, and nobody but this one listens. */
int tcpmig_upgrade_finish(struct tcpmig_upgrade *upgrade);

/* As tcpmig_agent_next_event(). OFFER has an id and layers, and says of no offer what became of it; ARRIVED has fd, flow, layers,
 * unwritten and unprocessed. */
int tcpmig_upgrade_next_event(struct tcpmig_upgrade *upgrade, struct tcpmig_event *event);

/* As tcpmig_agent_layer(). */
int tcpmig_upgrade_layer(const struct tcpmig_upgrade *upgrade, size_t index, struct tcpmig_layer *layer);

/* As tcpmig_agent_take(). The older version waits ten seconds for an answer. */
int tcpmig_upgrade_take(struct tcpmig_upgrade *upgrade, uint64_t offer);

/* As tcpmig_agent_refuse(): the session goes on in the older version. */
int tcpmig_upgrade_refuse(struct tcpmig_upgrade *upgrade, uint64_t offer, const char *reason);

#ifdef __cplusplus
}
#endif

#endif
