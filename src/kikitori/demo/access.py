"""Which requests the page's server answers.

The server is reached by whatever runs in any browser on this machine, and by other users of it. So every request must
name this server as its host (or another name could be made to lead here), and a request for anything but the page
itself must come from the page and bring the key, which only the printed address has.
"""

from hmac import compare_digest
from secrets import token_urlsafe

from aiohttp import web
from aiohttp.typedefs import Handler

# The header with the key, and what the addresses begin with that need it.
KEY, PRIVATE = "Kikitori-Key", "/api/"
# The page loads its own files alone, sends requests to its own server alone, and is in no frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "worker")),
        "img-src 'self' data:",
        "media-src blob:",
        *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors")),
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), display-capture=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Server": "kikitori",
}


class Access:
    """Refuses requests that are not the page's. key: new for each start of the server."""

    def __init__(self, port: int) -> None:
        self.key = token_urlsafe(24)
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self.address = f"http://127.0.0.1:{port}/"

    def fault(self, request: web.Request) -> str:
        """Why a request is refused, as a sentence; empty if it is answered."""
        headers = request.headers
        if headers.get("Host") not in self.hosts:
            return f"This server is {self.address} only."
        if not request.path.startswith(PRIVATE):
            return ""
        if headers.get("Origin", f"http://{headers['Host']}") != f"http://{headers['Host']}":
            return "Another site's page may not use this server."
        if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return "Another site's page may not use this server."
        if not compare_digest(headers.get(KEY, "").encode(errors="surrogateescape"), self.key.encode()):
            return "The key is missing or of an earlier start: open the address that kikitori demo has printed."
        return ""

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers a request with 403 and a sentence, or lets it through."""
        if fault := self.fault(request):
            return web.json_response({"error": fault}, status=403)
        return await handler(request)


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Adds the headers that every response has."""
    response.headers.update(HEADERS)
