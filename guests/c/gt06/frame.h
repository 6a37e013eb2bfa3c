/* Frames of GT06 on the wire. Knows nothing of what they mean.
 *
 *     78 78 length(1) protocol(1) body serial(2) checksum(2) 0d 0a
 *     79 79 length(2) protocol(1) body serial(2) checksum(2) 0d 0a
 *
 * The length counts from the protocol to the checksum, both included. The checksum is CRC-ITU (X.25) over everything
 * from the length to the serial. */
#ifndef FRAME_H
#define FRAME_H

#include "polygate.h"

enum {
    FRAME_MAX = 4096,   /* longest frame with all of its bytes; terminals send a few hundred */
    BODY_MAX = 255 - 5, /* longest body in a frame that begins with 78 78 */
};

typedef struct {
    bool extended; /* began with 79 79 */
    uint8_t protocol;
    uint16_t serial;
    pg_bytes body;
} gt06_frame;

/* What the beginning of a stream is. */
typedef enum {
    FRAME_WHOLE,
    FRAME_UNFINISHED, /* more bytes will tell */
    FRAME_STRAY,      /* bytes that are in no frame */
    FRAME_CORRUPT,    /* a frame whose checksum is wrong */
} gt06_found;

/* Looks at the beginning of a stream; `used` is how many bytes that was, 0 when unfinished. */
gt06_found gt06_take(pg_bytes stream, gt06_frame *frame, size_t *used);

/* Adds a frame that begins with 78 78, or with 79 79; its body has at most BODY_MAX bytes. */
void gt06_add_frame(pg_buffer *out, bool extended, uint8_t protocol, pg_bytes body, uint16_t serial);

#endif
