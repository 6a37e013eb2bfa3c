/* What a terminal reports, as JSON. Pure: a frame goes in, text comes out. */
#ifndef REPORT_H
#define REPORT_H

#include "frame.h"

/* What became of a frame. */
typedef enum {
    REPORT_POSITION,
    REPORT_STATUS,
    REPORT_MESSAGE, /* anything else, with its body */
} gt06_report;

/* Adds the JSON of a frame from the terminal with this IMEI, whose clock is so many minutes ahead of UTC. */
gt06_report gt06_add_report(pg_buffer *json, pg_bytes imei, const gt06_frame *frame, int timezone_min);

/* Does the terminal wait for an answer to this, and send it again without one? */
bool gt06_wants_answer(const gt06_frame *frame);

#endif
