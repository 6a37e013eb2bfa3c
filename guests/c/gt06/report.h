/* What a terminal reports, as JSON. Pure: a frame goes in, text comes out. */
#ifndef REPORT_H
#define REPORT_H

#include "frame.h"

/* Which topic a frame belongs to. */
typedef enum {
    REPORT_POSITION,
    REPORT_STATUS,
    REPORT_ALARM,   /* an alarm without a usable position */
    REPORT_CELLS,   /* cells and Wi-Fi stations, which are never a position */
    REPORT_LOGIN,
    REPORT_MESSAGE, /* anything else, with its body */
} gt06_topic;

typedef struct {
    gt06_topic topic;
    pg_bytes undecoded; /* why the frame, or a part of it, is passed on as it is; empty when all of it was decoded */
} gt06_report;

/* Adds the JSON of a frame from the terminal with this IMEI, whose clock is so many minutes ahead of UTC. */
gt06_report gt06_add_report(pg_buffer *json, pg_bytes imei, const gt06_frame *frame, int timezone_min);

/* The time zone in the body of a login; false when it has none, or none that exists. */
bool gt06_login_timezone(pg_bytes body, int *minutes);

/* Adds the frame that answers a report, if the terminal waits for one. */
bool gt06_add_answer(pg_buffer *out, const gt06_frame *frame);

#endif
