using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.ML.OnnxRuntimeGenAI;

namespace EdgekitModel;

/// <summary>One turn of a conversation. Role: "system", "user" or "assistant".</summary>
public sealed record Message(
    [property: JsonPropertyName("role")] string Role,
    [property: JsonPropertyName("content")] string Content);

/// <summary>A loaded artifact; for one thread at a time.</summary>
public sealed class Model : IDisposable
{
    private readonly Manifest manifest;
    private readonly string template;
    private readonly Microsoft.ML.OnnxRuntimeGenAI.Model model;
    private readonly Tokenizer tokenizer;

    /// <summary>Loads the artifact beside the application, or that in <paramref name="directory"/>, after comparing every file.</summary>
    /// <exception cref="InvalidDataException">A file, the tokenizer or the chat template is not what was packaged.</exception>
    public Model(string? directory = null)
    {
        directory ??= Path.Combine(AppContext.BaseDirectory, "artifact");
        manifest = Manifest.Open(directory);
        var name = manifest.ChatTemplate ?? throw new InvalidDataException("the artifact has no chat template; package an instruct model");
        template = File.ReadAllText(Path.Combine(directory, name));
        model = new Microsoft.ML.OnnxRuntimeGenAI.Model(directory);
        tokenizer = new Tokenizer(model);
        Compare();
    }

    /// <summary>The greedy answer, piece by piece: each time all of its text so far.</summary>
    /// <exception cref="ArgumentException">The conversation is longer than the model holds.</exception>
    public IEnumerable<string> Answer(IReadOnlyList<Message> messages, CancellationToken cancel = default)
    {
        var tokens = Encode(Render(messages)).ToList();
        var limit = manifest.Context.Length;
        if (tokens.Count >= limit)
        {
            throw new ArgumentException($"the conversation has {tokens.Count} tokens, the model holds {limit}; begin a new one");
        }
        var first = tokens.Count;
        var generator = Start(tokens);
        try
        {
            while (tokens.Count < limit && !cancel.IsCancellationRequested)
            {
                // LongRoPE: beyond its switch other factors hold, for the whole sequence, so that it is computed anew there.
                if (tokens.Count > first && tokens.Count == manifest.Context.RopeSwitch + 1)
                {
                    generator.Dispose();
                    generator = Start(tokens);
                }
                generator.GenerateNextToken();
                var next = generator.GetSequence(0)[^1];
                if (manifest.Tokens.Stop.Contains(next))
                {
                    yield break;
                }
                tokens.Add(next);
                yield return tokenizer.Decode(tokens.Skip(first).ToArray());
            }
        }
        finally
        {
            generator.Dispose();
        }
    }

    public void Dispose()
    {
        tokenizer.Dispose();
        model.Dispose();
    }

    private Generator Start(List<int> tokens)
    {
        using var options = new GeneratorParams(model);
        options.SetSearchOption("max_length", manifest.Context.Length);
        options.SetSearchOption("do_sample", false);
        var generator = new Generator(model, options);
        generator.AppendTokens(tokens.ToArray());
        return generator;
    }

    private int[] Encode(string text)
    {
        using var sequences = tokenizer.Encode(text);
        return sequences[0].ToArray();
    }

    private string Render(IReadOnlyList<Message> messages) =>
        tokenizer.ApplyChatTemplate(template, JsonSerializer.Serialize(messages), "", true);

    /// <summary>GenAI's tokenizer and template engine are others than those that the model was built with: the manifest's texts have to come out the same.</summary>
    private void Compare()
    {
        foreach (var vector in manifest.Conformance.Encode.Where(vector => vector.Text.Length > 0))
        {
            if (!Encode(vector.Text).SequenceEqual(vector.Ids))
            {
                throw new InvalidDataException($"the tokenizer reads \"{vector.Text}\" otherwise here than the model's own");
            }
        }
        foreach (var vector in manifest.Conformance.Chat)
        {
            if (Render(vector.Messages) != vector.Rendered)
            {
                throw new InvalidDataException("the chat template gives another text here than where the model was built");
            }
        }
    }
}
