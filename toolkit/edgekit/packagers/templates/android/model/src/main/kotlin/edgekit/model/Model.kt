package edgekit.model

import ai.onnxruntime.genai.Generator
import ai.onnxruntime.genai.GeneratorParams
import ai.onnxruntime.genai.Tokenizer
import org.json.JSONArray
import org.json.JSONObject
import java.io.File
import ai.onnxruntime.genai.Model as GenAiModel

/** One turn of a conversation. [role]: "system", "user" or "assistant". */
data class Message(val role: String, val content: String)

/** A loaded artifact; for one thread at a time, and never the main one. */
class Model(directory: File) : AutoCloseable {
    private val manifest = JSONObject(File(directory, "edgekit.json").readText())
    private val template = File(directory, manifest.getString("chat_template")).readText()
    private val stop = manifest.getJSONObject("tokens").getJSONArray("stop").let { ids -> (0 until ids.length()).map(ids::getInt).toSet() }
    private val limits = manifest.getJSONObject("context")
    private val limit = limits.getInt("length")
    private val switch = if (limits.isNull("rope_switch")) Int.MAX_VALUE else limits.getInt("rope_switch")
    private val model = GenAiModel(directory.path)
    private val tokenizer = Tokenizer(model)

    init {
        compare(manifest.getJSONObject("conformance"))
    }

    /** The greedy answer, at most [most] tokens; [step] gets the text so far after each token and ends the answer by false. */
    fun answer(messages: List<Message>, most: Int = Int.MAX_VALUE, step: (String) -> Boolean = { true }): String {
        val tokens = encode(render(messages)).toMutableList()
        require(tokens.size < limit) { "the conversation has ${tokens.size} tokens, the model holds $limit; begin a new one" }
        val first = tokens.size
        var generator = start(tokens)
        try {
            while (tokens.size < limit && tokens.size - first < most) {
                // LongRoPE: beyond its switch other factors hold, for the whole sequence, so that it is computed anew there.
                if (tokens.size == switch + 1 && tokens.size > first) {
                    generator.close()
                    generator = start(tokens)
                }
                generator.generateNextToken()
                val next = generator.getLastTokenInSequence(0)
                if (next in stop) break
                tokens.add(next)
                if (!step(decode(tokens, first))) break
            }
        } finally {
            generator.close()
        }
        return decode(tokens, first)
    }

    override fun close() {
        tokenizer.close()
        model.close()
    }

    private fun start(tokens: List<Int>): Generator {
        GeneratorParams(model).use { params ->
            params.setSearchOption("max_length", limit.toDouble())
            params.setSearchOption("do_sample", false)
            return Generator(model, params).also { it.appendTokens(tokens.toIntArray()) }
        }
    }

    private fun encode(text: String): List<Int> = tokenizer.encode(text).use { it.getSequence(0).toList() }

    private fun decode(tokens: List<Int>, from: Int): String =
        if (tokens.size == from) "" else tokenizer.decode(tokens.subList(from, tokens.size).toIntArray())

    private fun render(messages: List<Message>): String {
        val list = JSONArray()
        for (message in messages) list.put(JSONObject().put("role", message.role).put("content", message.content))
        return tokenizer.applyChatTemplate(template, list.toString(), null, true)
    }

    /** GenAI's tokenizer and template engine are others than those that the model was built with: the manifest's texts have to come out the same. */
    private fun compare(vectors: JSONObject) {
        val encode = vectors.getJSONArray("encode")
        for (i in 0 until encode.length()) {
            val vector = encode.getJSONObject(i)
            val text = vector.getString("text")
            val ids = vector.getJSONArray("ids").let { ids -> (0 until ids.length()).map(ids::getInt) }
            check(text.isEmpty() || encode(text) == ids) { "the tokenizer reads \"$text\" otherwise here than the model's own" }
        }
        val chat = vectors.getJSONArray("chat")
        for (i in 0 until chat.length()) {
            val vector = chat.getJSONObject(i)
            val said = tokenizer.applyChatTemplate(template, vector.getJSONArray("messages").toString(), null, true)
            check(said == vector.getString("rendered")) { "the chat template gives another text here than where the model was built" }
        }
    }
}
