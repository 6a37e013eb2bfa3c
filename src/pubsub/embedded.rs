mod routes;
mod retained;
