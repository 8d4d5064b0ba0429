"""One image question to a running server: its URL, the image's side and the answer's length in, JSON times out."""

import json
import sys
import urllib.parse

from peer_norma import Norma
from peer_protocol import question


def main():
    url, side, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    client = Norma({"adapters": 0})
    parts = urllib.parse.urlsplit(url)
    client.address = parts.hostname, parts.port
    answer = client.stream([question(1, side)], tokens)[0]
    further = (answer.pieces[-1] - answer.pieces[0]) / max(answer.tokens - 1, 1)
    print(json.dumps({"prompt_rows": answer.prompt_tokens, "first_token_seconds": round(answer.pieces[0], 3),
                      "seconds_per_token": round(further, 4), "tokens": answer.tokens}))


if __name__ == "__main__":
    main()
