/* JSON, as much as a handler needs: written straight into a buffer, and read by member's name without a tree. */
#ifndef POLYGATE_JSON_H
#define POLYGATE_JSON_H

#include "polygate.h"

/* ---- Writing. A null pointer for a name: an element of an array, or the outermost value. ---- */

void pg_json_open(pg_buffer *json, const char *name, char bracket); /* '{' or '[' */
void pg_json_close(pg_buffer *json, char bracket);                  /* '}' or ']' */
void pg_json_text(pg_buffer *json, const char *name, pg_bytes text); /* what is not UTF-8 becomes U+FFFD */
void pg_json_hex(pg_buffer *json, const char *name, pg_bytes bytes);
void pg_json_number(pg_buffer *json, const char *name, int64_t number);
void pg_json_decimal(pg_buffer *json, const char *name, int64_t number, unsigned places);
void pg_json_flag(pg_buffer *json, const char *name, bool flag);

/* ---- Reading. Text that is no JSON may give members that nobody meant; it is never read beyond its end. ---- */

/* The value of an object's first member of this name, as it is written. */
bool pg_json_member(pg_bytes object, const char *name, pg_bytes *value);
/* A string with its escapes undone, into an empty or used buffer; false when it is no string. */
bool pg_json_read_text(pg_bytes value, pg_buffer *text);
/* A number without sign, fraction and exponent, that fits. */
bool pg_json_read_number(pg_bytes value, uint64_t *number);

#endif
