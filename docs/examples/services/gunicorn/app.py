"""One page. gunicorn takes the socket that it is given (LISTEN_FDS) by itself."""


def app(_environ, start_response):
    with open("/www/index.html", "rb") as page:
        body = page.read()
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
    return [body]
