"""``edge serve``: one artifact behind an HTTP interface that OpenAI's clients speak.

    settings.py   what the operator chose: address, key, limits
    problems.py   what a client gets instead of an answer, in OpenAI's shape
    guard.py      before anything is read: Host, Origin, API key, size of the body
    requests.py   JSON of a request into checked records
    messages.py   a conversation as chat templates take it
    tools.py      how model families write tool calls
    worker.py     the one thread that computes, and the queue before it
    answering.py  what the worker does for one request: parts of answers, through the runtime's one loop
    calling.py    the same with tools: free text and calls by turns
    bodies.py     parts of answers into OpenAI's documents and stream events
    app.py        routes
    openapi.py    the document that describes them
    metrics.py    what Prometheus reads
    run.py        the process: binding, signals, draining

The device side only; nothing of the build side is imported.
"""
