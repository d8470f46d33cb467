// A conversation, or one answer: App.exe ["a prompt"]. "/new" begins a new conversation, an empty line ends.

using EdgekitModel;

using var model = new Model();
var messages = new List<Message>();
var prompts = args.Length > 0 ? args : Ask();

foreach (var prompt in prompts)
{
    if (prompt == "/new")
    {
        messages.Clear();
        continue;
    }
    messages.Add(new Message("user", prompt));
    var answer = "";
    try
    {
        foreach (var text in model.Answer(messages))
        {
            // A character of several tokens changes while it grows: only what stands is written.
            if (text.StartsWith(answer, StringComparison.Ordinal) && !text.EndsWith('\uFFFD'))
            {
                Console.Write(text[answer.Length..]);
                answer = text;
            }
        }
    }
    catch (ArgumentException error)
    {
        // The conversation has no more room: what was asked is taken back.
        messages.RemoveAt(messages.Count - 1);
        Console.WriteLine($"{error.Message} (/new)");
        continue;
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
