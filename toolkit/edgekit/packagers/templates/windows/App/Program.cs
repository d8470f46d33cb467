// A conversation, or one answer: App.exe ["a prompt"]

using EdgekitModel;

using var model = new Model();
var messages = new List<Message>();
var prompts = args.Length > 0 ? args : Ask();

foreach (var prompt in prompts)
{
    messages.Add(new Message("user", prompt));
    var answer = "";
    foreach (var text in model.Answer(messages))
    {
        // A character of several tokens changes while it grows: only what stands is written.
        if (text.StartsWith(answer, StringComparison.Ordinal) && !text.EndsWith('\uFFFD'))
        {
            Console.Write(text[answer.Length..]);
            answer = text;
        }
    }
    Console.WriteLine();
    messages.Add(new Message("assistant", answer));
}

static IEnumerable<string> Ask()
{
    while (true)
    {
        Console.Write("> ");
        var line = Console.ReadLine();
        if (string.IsNullOrEmpty(line))
        {
            yield break;
        }
        yield return line;
    }
}
