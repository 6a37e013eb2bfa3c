/* Peers that speak another protocol: when to end them, and what the log says of them. */
#ifndef POLYGATE_FOREIGN_H
#define POLYGATE_FOREIGN_H

#include "polygate.h"

enum {
    PG_FOREIGN_BYTES_MAX = 4096,  /* bytes in no frame, one after the other, that end a peer */
    PG_FOREIGN_MS_MAX = 60000,    /* and for how long they may come */
    PG_FOREIGN_FIRST_MAX = 16,    /* bytes that the log shows */
    PG_FOREIGN_KEEPALIVE_MS = 40000, /* for pg_start_keepalive before the first frame: it runs out after 60 s */
};

/* Bytes since the latest frame that are in none. Begins as {0}. */
typedef struct {
    uint8_t first[PG_FOREIGN_FIRST_MAX];
    uint8_t first_len;
    bool framed; /* a frame was seen */
    uint32_t bytes;
    uint64_t since_ms;
} pg_foreign;

void pg_foreign_stray(pg_foreign *foreign, pg_bytes bytes); /* these are in no frame */
void pg_foreign_frame(pg_foreign *foreign);                 /* a frame was seen: all begins anew */

/* Call it at the end of on_bytes: whether the peer is to be ended, which is then in the log. `held` is the beginning of
 * a frame that is not there as a whole: it counts until the first frame. `protocol` is the handler's own. */
bool pg_foreign_ends(pg_foreign *foreign, pg_bytes held, const char *protocol);

/* The line that says what came, for a peer that is silent or gone before its first frame. */
void pg_foreign_log(const pg_foreign *foreign, pg_bytes held, const char *protocol);

/* Which protocol begins like this; a null pointer when it is none that is known here. */
const char *pg_foreign_name(pg_bytes first);

#endif
