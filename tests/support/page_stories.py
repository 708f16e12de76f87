"""Trees of stories for the tests of the page."""

from tinystory.decoding.spec import parse_spec
from tinystory.story.tree import StoryTree, Turn, Written
from tinystory.writing.generate import Ended, StoryRequest, write

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=alert(1)> \" onclick=\"x \x1b[31m <!-- $data"

HOSTILE_STORIES = [
    HOSTILE,
    "<svg onload=document.title='x'><style>@import 'http://x.invalid/a.css'</style>",
    "<iframe srcdoc=\"<script>parent.document.title='x'</script>\"></iframe>",
    "<base href=http://x.invalid/><link rel=stylesheet href=a.css>",
    '<body style="background: url(http://x.invalid/a.png)"> <meta http-equiv=refresh content=0;url=http://x.invalid>',
    "<a href=\"javascript:document.title='x'\" autofocus onfocus=document.title='x'>here</a>",
    "--> ]]> </textarea></title></style></p><img src=http://x.invalid/a.png> <form action=http://x.invalid>",
    "\\u003c/script\\u003e \\\" \u2028 \u2029 ${document.title='x'} {{7*7}} `'\" &lt;script&gt; &#60;img&#62;",
    "\u202eevil\u202c \x00\x07\x1b]8;;http://x.invalid\x07 \ufeff\u200b __proto__ constructor",
    "<object data=http://x.invalid></object><math><mi xlink:href=data:x onclick=document.title='x'>",
]


def tree_with_branches(model, registry, prompt, *specs, n=12, model_hash=None):
    """Return a tree in which each spec has written a branch of one prompt, all with the seed 5."""
    tree = StoryTree()
    typed_ids = tuple(model.tokenizer.encode(prompt))
    for spec in specs:
        request = StoryRequest(prompt, parse_spec(spec, registry), seed=5, max_new_tokens=n)
        events = write(model.session, model.tokenizer, [request])
        story = next(event.result for event in events if isinstance(event, Ended))
        written = Written(
            spec=spec, seed=5, number=0, model="default", model_hash=model_hash or model.hash, dtype="float32",
            max_new_tokens=n, stop=(), heal="", tokens=story.tokens, finish_reason=story.finish_reason,
        )  # fmt: skip
        own = prompt + story.completion
        tree.add(
            Turn(
                id=0, parent=0, kept=0, typed=prompt, typed_ids=typed_ids, written=written, vocabulary="v", shared=0,
                own=own,
            )
        )  # fmt: skip
    return tree
